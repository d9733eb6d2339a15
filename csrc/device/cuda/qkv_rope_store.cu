// A CTA a row. The row's angles are computed once, before the product of q, k and v is there.
#include "device/cuda/qkv_rope_store.h"

#include <algorithm>

#include "device/cuda/launch.h"
#include "device/cuda/ptx.cuh"
#include "device/cuda/rotation.cuh"

namespace rtp_llm::cuda {
namespace {

constexpr int kMaxHeadDim = 512;
constexpr int kMaxThreads = 512;

// One head's vector in this row: where it comes from, where it goes, how.
struct Vector {
  bf16* from;
  bf16* to;
  const float* norm;  // or null
  bool rotated;
};

struct Row {
  const RopeStoreProblem& p;
  int row;
  uint8_t* token;  // in the pool, of plane and head 0 at offset 0

  __device__ bf16* stored(int plane, int head) const {
    return reinterpret_cast<bf16*>(token + p.kv.plane_offset[plane] + head * p.kv.head_stride);
  }
  __device__ Vector vector(int index) const {  // q heads, then k, then v
    bf16* from = p.qkv + row * p.stride + int64_t{index} * p.kv.head_dim;
    if (index < p.num_heads) return {from, from, p.q_norm, true};
    const int head = index - p.num_heads;
    if (head < p.kv.num_heads) return {from, stored(0, head), p.k_norm, true};
    return {from, stored(1, head - p.kv.num_heads), nullptr, false};
  }
};

__device__ __forceinline__ float inverse_rms(float squares, int head_dim, float epsilon) {
  return __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(squares, static_cast<float>(head_dim)), epsilon)));
}

// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), as CudaOps::rope.
__device__ __forceinline__ void rotate(float& x1, float& x2, Rotation angle) {
  const float first = __fsub_rn(__fmul_rn(x1, angle.cos), __fmul_rn(x2, angle.sin));
  x2 = __fadd_rn(__fmul_rn(x2, angle.cos), __fmul_rn(x1, angle.sin));
  x1 = first;
}

__device__ __forceinline__ Row row_of(const RopeStoreProblem& p, Rotation* angles) {
  const int row = blockIdx.x, slot = p.row_slot[row], position = p.seq_len[slot] + p.row_offset[row];
  const int64_t block = p.block_tables[slot * p.block_table_stride + position / p.kv.block_tokens];
  for (int i = threadIdx.x; i < p.rotary_half; i += blockDim.x) angles[i] = rotation_of(position, p.inv_freq[i]);
  __syncthreads();
  return {p, row, p.kv.base + block * p.kv.block_stride + position % p.kv.block_tokens * p.kv.token_stride};
}

// A lane has 8 dims of the first half and the 8 that they turn with: 16 bytes each.
template <int kHeadDim>
__global__ void __launch_bounds__(kMaxThreads) rope_store_kernel(const __grid_constant__ RopeStoreProblem p) {
  constexpr int kLanes = kHeadDim / 16;  // of a vector
  __shared__ Rotation angles[kHeadDim / 2];
  let_successor_start();
  const Row row = row_of(p, angles);
  const int count = (p.num_heads + 2 * p.kv.num_heads) * kLanes;
  const int lane = threadIdx.x % kLanes;
  wait_for_predecessor();
  for (int i = threadIdx.x; i - static_cast<int>(threadIdx.x % 32) < count; i += blockDim.x) {  // whole warps stay
    const bool inside = i < count;
    const Vector vector = row.vector(inside ? i / kLanes : 0);
    uint4 raw[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) raw[half] = load_16(vector.from + half * kHeadDim / 2 + lane * 8);
    float x[2][8];
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint32_t word = k == 0 ? raw[half].x : k == 1 ? raw[half].y : k == 2 ? raw[half].z : raw[half].w;
        x[half][2 * k] = low_bf16(word);
        x[half][2 * k + 1] = high_bf16(word);
      }
    if (p.q_norm != nullptr) {
      float squares = 0.0f;
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int k = 0; k < 8; ++k) squares = __fmaf_rn(x[half][k], x[half][k], squares);
#pragma unroll
      for (int step = 1; step < kLanes; step *= 2) squares = __fadd_rn(squares, __shfl_xor_sync(~0u, squares, step));
      if (vector.norm != nullptr) {
        const float scale = inverse_rms(squares, kHeadDim, p.norm_epsilon);
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int k = 0; k < 8; ++k)
            x[half][k] = __fmul_rn(__fmul_rn(x[half][k], scale), vector.norm[half * kHeadDim / 2 + lane * 8 + k]);
      }
    }
    if (vector.rotated)
#pragma unroll
      for (int k = 0; k < 8; ++k) rotate(x[0][k], x[1][k], angles[lane * 8 + k]);
    if (inside)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<uint4*>(vector.to + half * kHeadDim / 2 + lane * 8) =
            make_uint4(pack_bf16(x[half][0], x[half][1]), pack_bf16(x[half][2], x[half][3]),
                       pack_bf16(x[half][4], x[half][5]), pack_bf16(x[half][6], x[half][7]));
  }
}

// Any head_dim and partial rotation: a warp a vector.
__global__ void __launch_bounds__(kMaxThreads) rope_store_any_kernel(const __grid_constant__ RopeStoreProblem p) {
  __shared__ Rotation angles[kMaxHeadDim / 2];
  let_successor_start();
  const Row row = row_of(p, angles);
  const int head_dim = p.kv.head_dim, half = p.rotary_half, lane = threadIdx.x % 32;
  wait_for_predecessor();
  for (int index = threadIdx.x / 32; index < p.num_heads + 2 * p.kv.num_heads; index += blockDim.x / 32) {
    const Vector vector = row.vector(index);
    float squares = 0.0f;
    for (int d = lane; d < head_dim; d += 32) {
      const float x = __bfloat162float(vector.from[d]);
      squares = __fmaf_rn(x, x, squares);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) squares = __fadd_rn(squares, __shfl_xor_sync(~0u, squares, step));
    const float scale = inverse_rms(squares, head_dim, p.norm_epsilon);
    const auto value = [&](int d) {
      const float x = __bfloat162float(vector.from[d]);
      return vector.norm != nullptr ? __fmul_rn(__fmul_rn(x, scale), vector.norm[d]) : x;
    };
    for (int d = lane; d < half; d += 32) {
      float x1 = value(d), x2 = value(d + half);
      if (vector.rotated) rotate(x1, x2, angles[d]);
      vector.to[d] = __float2bfloat16_rn(x1);
      vector.to[d + half] = __float2bfloat16_rn(x2);
    }
    for (int d = 2 * half + lane; d < head_dim; d += 32) vector.to[d] = __float2bfloat16_rn(value(d));
  }
}

}  // namespace

void qkv_rope_store(cudaStream_t stream, const RopeStoreProblem& problem) {
  const KvView& kv = problem.kv;
  check(kv.dtype == DType::kBF16, "qkv_rope_store: the KV pool must be bfloat16, got ", name_of(kv.dtype));
  check(kv.head_dim > 0 && kv.head_dim <= kMaxHeadDim && 2 * problem.rotary_half <= kv.head_dim,
        "qkv_rope_store: head_dim ", kv.head_dim, " with ", problem.rotary_half, " frequencies");
  check((problem.q_norm == nullptr) == (problem.k_norm == nullptr),
        "qkv_rope_store: q and k are normed both or neither");
  if (problem.num_rows == 0) return;
  const bool wide = 2 * problem.rotary_half == kv.head_dim && problem.stride % 8 == 0 && kv.token_stride % 16 == 0;
  const auto kernel = !wide                ? rope_store_any_kernel
                      : kv.head_dim == 128 ? rope_store_kernel<128>
                      : kv.head_dim == 64  ? rope_store_kernel<64>
                                           : rope_store_any_kernel;
  const int lanes = kernel == rope_store_any_kernel ? 32 : kv.head_dim / 16;
  const int threads = std::min(kMaxThreads, ((problem.num_heads + 2 * kv.num_heads) * lanes + 31) / 32 * 32);
  launch(stream, {.grid = dim3(static_cast<unsigned>(problem.num_rows)), .block = dim3(static_cast<unsigned>(threads))},
         "qkv_rope_store", kernel, problem);
}

}  // namespace rtp_llm::cuda
