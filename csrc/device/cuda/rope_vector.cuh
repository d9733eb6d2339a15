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

// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), as CudaOps::rope.
__device__ __forceinline__ void rotate(float& x1, float& x2, Rotation angle) {
  const float first = __fsub_rn(__fmul_rn(x1, angle.cos), __fmul_rn(x2, angle.sin));
  x2 = __fadd_rn(__fmul_rn(x2, angle.cos), __fmul_rn(x1, angle.sin));
  x1 = first;
}

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

  __device__ void turn(const Rotation* angles, int lane) {
#pragma unroll
    for (int k = 0; k < 8; ++k) rotate(x[0][k], x[1][k], angles[lane * 8 + k]);
  }

  // Dims half * kHalf + lane * 8 and the 7 behind.
  __device__ uint4 rounded(int half) const {
    return make_uint4(pack_bf16(x[half][0], x[half][1]), pack_bf16(x[half][2], x[half][3]),
                      pack_bf16(x[half][4], x[half][5]), pack_bf16(x[half][6], x[half][7]));
  }
};

}  // namespace rtp_llm::cuda
