// A CTA a row, its angles computed before the product of q, k and v is there; or, with a RopeTable, rows in turn.
#include "device/cuda/qkv_rope_store.h"

#include <algorithm>

#include "device/cuda/launch.h"
#include "device/cuda/rope_store.cuh"

namespace rtp_llm::cuda {
namespace {

constexpr int kMaxHeadDim = 512;
constexpr int kMaxThreads = 512;
constexpr int kTableThreads = 384, kTableCtasAnSm = 2;

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

__device__ __forceinline__ Row row_of(const RopeStoreProblem& p, Rotation* angles) {
  const int row = blockIdx.x, slot = p.row_slot[row], position = p.seq_len[slot] + p.row_offset[row];
  const int64_t block = p.block_tables[slot * p.block_table_stride + position / p.kv.block_tokens];
  for (int i = threadIdx.x; i < p.rotary_half; i += blockDim.x) angles[i] = rotation_of(position, p.inv_freq[i]);
  __syncthreads();
  return {p, row, p.kv.base + block * p.kv.block_stride + position % p.kv.block_tokens * p.kv.token_stride};
}

template <int kHeadDim>
__global__ void __launch_bounds__(kMaxThreads) rope_store_kernel(const __grid_constant__ RopeStoreProblem p) {
  constexpr int kLanes = RopeVector<kHeadDim>::kLanes, kHalf = RopeVector<kHeadDim>::kHalf;
  __shared__ Rotation angles[kHalf];
  let_successor_start();
  const Row row = row_of(p, angles);
  const int count = (p.num_heads + 2 * p.kv.num_heads) * kLanes;
  const int lane = threadIdx.x % kLanes;
  wait_for_predecessor();
  for (int i = threadIdx.x; i - static_cast<int>(threadIdx.x % 32) < count; i += blockDim.x) {  // whole warps stay
    const bool inside = i < count;
    const Vector vector = row.vector(inside ? i / kLanes : 0);
    RopeVector<kHeadDim> x(load_16(vector.from + lane * 8), load_16(vector.from + kHalf + lane * 8));
    if (p.q_norm != nullptr) {
      const float squares = x.squares();
      if (vector.norm != nullptr) x.norm(squares, vector.norm, p.norm_epsilon, lane);
    }
    if (vector.rotated) x.turn(angles, lane);
    if (inside)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<uint4*>(vector.to + half * kHalf + lane * 8) = x.rounded(half);
  }
}

// A thread has its part of one head in every gridDim.x-th row, and requests the next before it computes this one.
template <int kHeadDim>
__global__ void __launch_bounds__(kTableThreads, kTableCtasAnSm)
    rope_store_by_table_kernel(const __grid_constant__ RopeStoreProblem p) {
  constexpr int kLanes = RopeHead<kHeadDim>::kLanes, kHalf = RopeHead<kHeadDim>::kHalf;
  const int heads = p.num_heads + 2 * p.kv.num_heads;
  const int index = (blockIdx.y * blockDim.x + threadIdx.x) / kLanes, lane = threadIdx.x % kLanes;
  const RopeHead<kHeadDim> head(p, min(index, heads - 1), lane);
  const bf16* from = p.qkv + int64_t{min(index, heads - 1)} * kHeadDim + lane * 8;
  let_successor_start();
  wait_for_predecessor();
  const auto load = [&](int row, int half) {
    return load_16(from + min(row, p.num_rows - 1) * p.stride + half * kHalf);
  };
  uint4 low = load(blockIdx.x, 0), high = load(blockIdx.x, 1);
  for (int row = blockIdx.x; row < p.num_rows; row += gridDim.x) {
    const uint4 next_low = load(row + gridDim.x, 0), next_high = load(row + gridDim.x, 1);
    head.store(head.place(row), low, high, index < heads);
    low = next_low, high = next_high;
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

// Heads of which a thread has 16 bytes of each half.
bool is_wide(const RopeStoreProblem& problem) {
  const KvView& kv = problem.kv;
  return (kv.head_dim == 64 || kv.head_dim == 128) && 2 * problem.rotary_half == kv.head_dim &&
         problem.stride % 8 == 0 && kv.token_stride % 16 == 0;
}

int num_sms() {
  int gpu = 0, count = 0;
  cuda_check(cudaGetDevice(&gpu), "cudaGetDevice");
  cuda_check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, gpu), "cudaDeviceGetAttribute");
  return count;
}

void start_by_table(cudaStream_t stream, const RopeStoreProblem& problem) {
  const int head_dim = problem.kv.head_dim;
  const int count = (problem.num_heads + 2 * problem.kv.num_heads) * (head_dim / 16);
  const int parts = (count + kTableThreads - 1) / kTableThreads;
  const int threads = ((count + parts - 1) / parts + 31) / 32 * 32;
  const int at_once = std::max(1, num_sms() * kTableCtasAnSm * kTableThreads / (threads * parts));
  launch(stream,
         {.grid = dim3(static_cast<unsigned>(std::min(problem.num_rows, at_once)), static_cast<unsigned>(parts)),
          .block = dim3(static_cast<unsigned>(threads))},
         "qkv_rope_store", head_dim == 128 ? rope_store_by_table_kernel<128> : rope_store_by_table_kernel<64>, problem);
}

}  // namespace

bool ropes_by_table(const RopeStoreProblem& problem) {
  const auto is_aligned = [](const float* weight) { return reinterpret_cast<uintptr_t>(weight) % 16 == 0; };
  return problem.table.angles != nullptr && is_wide(problem) && is_aligned(problem.q_norm) &&
         is_aligned(problem.k_norm);
}

void qkv_rope_store(cudaStream_t stream, const RopeStoreProblem& problem) {
  const KvView& kv = problem.kv;
  check(kv.dtype == DType::kBF16, "qkv_rope_store: the KV pool must be bfloat16, got ", name_of(kv.dtype));
  check(kv.head_dim > 0 && kv.head_dim <= kMaxHeadDim && 2 * problem.rotary_half <= kv.head_dim,
        "qkv_rope_store: head_dim ", kv.head_dim, " with ", problem.rotary_half, " frequencies");
  check((problem.q_norm == nullptr) == (problem.k_norm == nullptr),
        "qkv_rope_store: q and k are normed both or neither");
  if (problem.num_rows == 0) return;
  if (ropes_by_table(problem)) return start_by_table(stream, problem);
  const auto kernel = !is_wide(problem)    ? rope_store_any_kernel
                      : kv.head_dim == 128 ? rope_store_kernel<128>
                                           : rope_store_kernel<64>;
  const int lanes = kernel == rope_store_any_kernel ? 32 : kv.head_dim / 16;
  const int threads = std::min(kMaxThreads, ((problem.num_heads + 2 * kv.num_heads) * lanes + 31) / 32 * 32);
  launch(stream, {.grid = dim3(static_cast<unsigned>(problem.num_rows)), .block = dim3(static_cast<unsigned>(threads))},
         "qkv_rope_store", kernel, problem);
}

}  // namespace rtp_llm::cuda
