// One head's vector between the product of q, k, v and attention: rms norm over head_dim, then the rotation, in f32,
// rounded once. A lane has 8 dims of the first half and the 8 that they turn with. One text for qkv_rope_store and for
// decode attention that does it itself: equal bits.
#pragma once

#include "device/cuda/ptx.cuh"
#include "device/cuda/rotation.cuh"

namespace rtp_llm::cuda {

__device__ __forceinline__ float inverse_rms(float squares, int head_dim, float epsilon) {
  return __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(squares, static_cast<float>(head_dim)), epsilon)));
}

// 1 / sqrt(x) by two correctly rounded steps: for every x above 0 the bits of __frcp_rn(__fsqrt_rn(x)), without the
// calls that these make for values out of range and the registers that a call takes. 0 gives NaN.
__device__ __forceinline__ float inverse_root(float x) {
  const bool tiny = x < 0x1p-90f;
  const float in_range = tiny ? __fmul_rn(x, 0x1p96f) : x;
  float s, root, y;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(s) : "f"(in_range));
  root = __fmul_rn(in_range, s);
  root = __fmaf_rn(__fmaf_rn(-root, root, in_range), __fmul_rn(s, 0.5f), root);
  if (tiny) root = __fmul_rn(root, 0x1p-48f);
  asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(root));
  y = __fmaf_rn(y, __fmaf_rn(-root, y, 1.0f), y);
  return x == INFINITY ? 0.0f : y;
}

// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), as CudaOps::rope.
__device__ __forceinline__ void rotate(float& x1, float& x2, Rotation angle) {
  const float first = __fsub_rn(__fmul_rn(x1, angle.cos), __fmul_rn(x2, angle.sin));
  x2 = __fadd_rn(__fmul_rn(x2, angle.cos), __fmul_rn(x1, angle.sin));
  x1 = first;
}

// A lane's weights of a norm over head_dim.
template <int kHeadDim>
struct NormWeights {
  float4 words[2][2];

  // REQUIRES: `weight` on 16 bytes.
  __device__ void load(const float* weight, int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        words[half][i] = reinterpret_cast<const float4*>(weight + half * kHeadDim / 2 + lane * 8)[i];
  }
  __device__ float at(int half, int k) const {
    const float4& four = words[half][k / 4];
    return k % 4 == 0 ? four.x : k % 4 == 1 ? four.y : k % 4 == 2 ? four.z : four.w;
  }
};

template <int kHeadDim>
struct RopeVector {
  static constexpr int kLanes = kHeadDim / 16;  // of a vector
  static constexpr int kHalf = kHeadDim / 2;

  float x[2][8];

  __device__ RopeVector(uint4 low, uint4 high) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 raw = half == 0 ? low : high;
      const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        x[half][2 * k] = low_bf16(words[k]);
        x[half][2 * k + 1] = high_bf16(words[k]);
      }
    }
  }

  // Of the whole vector. REQUIRES: all lanes of the warp are here.
  __device__ float squares() const {
    float sum = 0.0f;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int k = 0; k < 8; ++k) sum = __fmaf_rn(x[half][k], x[half][k], sum);
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, step));
    return sum;
  }

  // `lane`: of the vector's.
  __device__ void norm(float squares, const float* weight, float epsilon, int lane) {
    const float scale = inverse_rms(squares, kHeadDim, epsilon);
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int k = 0; k < 8; ++k)
        x[half][k] = __fmul_rn(__fmul_rn(x[half][k], scale), weight[half * kHalf + lane * 8 + k]);
  }

  // The same bits by other instructions: more registers, fewer loads.
  __device__ void norm(float squares, const NormWeights<kHeadDim>& weights, float epsilon) {
    const float mean = __fmul_rn(squares, 1.0f / kHeadDim);  // a power of two: exact, as a division is
    const float scale = inverse_root(__fadd_rn(mean, epsilon));
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int k = 0; k < 8; ++k) x[half][k] = __fmul_rn(__fmul_rn(x[half][k], scale), weights.at(half, k));
  }

  __device__ void turn(const Rotation* angles, int lane) {
#pragma unroll
    for (int k = 0; k < 8; ++k) rotate(x[0][k], x[1][k], angles[lane * 8 + k]);
  }
  // By this lane's words of a RopeTable.
  __device__ void turn(const float4 (&words)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      rotate(x[0][2 * j], x[1][2 * j], {words[j].x, words[j].y});
      rotate(x[0][2 * j + 1], x[1][2 * j + 1], {words[j].z, words[j].w});
    }
  }

  // Dims half * kHalf + lane * 8 and the 7 behind.
  __device__ uint4 rounded(int half) const {
    return make_uint4(pack_bf16(x[half][0], x[half][1]), pack_bf16(x[half][2], x[half][3]),
                      pack_bf16(x[half][4], x[half][5]), pack_bf16(x[half][6], x[half][7]));
  }
};

}  // namespace rtp_llm::cuda
