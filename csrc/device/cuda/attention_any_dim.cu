// Attention for head dims that have no tiles: a CTA a row and query head, K and V straight from memory. Slow; the same
// fold.
#include "device/cuda/attention_fold.cuh"
#include "device/cuda/attention_shapes.h"
#include "device/cuda/launch.h"

namespace rtp_llm::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kTiles = kMaxAnyDim / 16 / kWarps;  // of 16 dims, of a warp

struct AnyDimParameters {
  AttentionProblem problem;
  DecodeRows rows;
  float log2_scale;
};

// Elements 2i and 2i + 1 of a vector, zeros behind its end.
__device__ __forceinline__ uint32_t pair_at(const bf16* vector, int element, int head_dim) {
  return element < head_dim ? *reinterpret_cast<const uint32_t*>(vector + element) : 0u;
}

struct KvVectors {
  const KvView& kv;
  const int32_t* table;
  int head;
  __device__ const bf16* at(int plane, int position) const {
    return reinterpret_cast<const bf16*>(kv.base + table[position / kv.block_tokens] * kv.block_stride +
                                         kv.plane_offset[plane] + head * kv.head_stride +
                                         position % kv.block_tokens * kv.token_stride);
  }
};

__global__ void __launch_bounds__(32 * kWarps) any_dim_kernel(const __grid_constant__ AnyDimParameters p) {
  __shared__ float scores[kBlockPositions], of_warp[kWarps];
  __shared__ uint32_t weights[kBlockPositions / 2];
  const AttentionProblem& problem = p.problem;
  const KvView& kv = problem.kv;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  const int row = p.rows.first_row + blockIdx.x, head = blockIdx.y;
  const int slot = p.rows.row_slot[row], context = problem.seq_len[slot] + p.rows.row_offset[row] + 1;
  const KvVectors vectors{kv, problem.block_tables + slot * problem.block_table_stride,
                          head / (problem.num_heads / kv.num_heads)};
  const int head_dim = kv.head_dim, steps = (head_dim + 15) / 16;
  let_successor_start();
  wait_for_predecessor();
  const bf16* q = problem.q + row * problem.q_stride + head * head_dim;

  float maximum = kNothing, sum = 0.0f, total[kTiles][2] = {};
  for (int base = 0; base < context; base += kBlockPositions) {
    const int visible = min(kBlockPositions, context - base);
    for (int first = warp * 32; first < warp * 32 + 32; first += 8) {
      float s[4] = {};
      const bf16* k = first + g < visible ? vectors.at(0, base + first + g) : nullptr;
      for (int j = 0; j < steps; ++j) {
        const uint32_t q0 = g == 0 ? pair_at(q, j * 16 + 2 * t, head_dim) : 0u;
        const uint32_t q1 = g == 0 ? pair_at(q, j * 16 + 2 * t + 8, head_dim) : 0u;
        const uint32_t k0 = k ? pair_at(k, j * 16 + 2 * t, head_dim) : 0u;
        const uint32_t k1 = k ? pair_at(k, j * 16 + 2 * t + 8, head_dim) : 0u;
        multiply_add(s, q0, 0u, q1, 0u, k0, k1);
      }
      if (g == 0)
#pragma unroll
        for (int e = 0; e < 2; ++e) scores[first + 2 * t + e] = first + 2 * t + e < visible ? s[e] : kNothing;
    }
    __syncthreads();
    const float score = scores[threadIdx.x];
    float highest = score;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, step));
    if (lane == 0) of_warp[warp] = highest;
    __syncthreads();
    const float block_max =
        block_maximum(fmaxf(fmaxf(of_warp[0], of_warp[1]), fmaxf(of_warp[2], of_warp[3])), p.log2_scale);
    const float weight = weight_of(score, p.log2_scale, block_max);
    const float next_weight = __shfl_down_sync(~0u, weight, 1);
    if (lane % 2 == 0) weights[threadIdx.x / 2] = pack_bf16(weight, next_weight);
    __syncthreads();

    const MergeFactors factors = merge_maximum(maximum, block_max);
    for (int i = -1; i < kTiles; ++i) {  // -1: the sum
      const int dim = (warp + i * kWarps) * 16 + g;
      if (i >= 0 && dim - g >= head_dim) break;
      float out[4] = {};
      for (int unit = 0; unit < visible; unit += kUnitPositions) {
        uint32_t v[4] = {kOnes, kOnes, kOnes, kOnes};
        if (i >= 0)
#pragma unroll
          for (int k = 0; k < 4; ++k) {  // dims g, g + 8 at positions 2t; the same at 2t + 8
            uint32_t halves[2] = {0, 0};
            const int d = dim + (k & 1) * 8, position = unit + 2 * t + (k >> 1) * 8;
#pragma unroll
            for (int e = 0; e < 2; ++e)
              if (position + e < visible && d < head_dim)
                halves[e] = __bfloat16_as_ushort(vectors.at(1, base + position + e)[d]);
            v[k] = halves[0] | halves[1] << 16;
          }
        const uint32_t w0 = g == 0 ? weights[(unit + 2 * t) / 2] : 0u,
                       w1 = g == 0 ? weights[(unit + 2 * t + 8) / 2] : 0u;
        multiply_add(out, v[0], v[1], v[2], v[3], w0, w1);
      }
      // Column 0 of the product, so lanes with t = 0 hold it.
      if (i < 0) {
        sum = merge(sum, out[0], factors);
      } else {
        total[i][0] = merge(total[i][0], out[0], factors);
        total[i][1] = merge(total[i][1], out[2], factors);
      }
    }
  }
  bf16* out = problem.out + row * problem.out_stride + head * head_dim;
  const Quotient quotient(sum);
  for (int i = 0; i < kTiles; ++i)
    for (int k = 0; k < 2; ++k) {
      const int dim = (warp + i * kWarps) * 16 + g + k * 8;
      if (t == 0 && dim < head_dim) out[dim] = __float2bfloat16_rn(quotient.of(total[i][k]));
    }
}

}  // namespace

void PagedAttention::any_dim(cudaStream_t stream, const AttentionProblem& problem, const DecodeRows& rows) const {
  if (rows.rows == 0) return;
  launch(stream,
         {.grid = dim3(static_cast<unsigned>(rows.rows), static_cast<unsigned>(problem.num_heads)),
          .block = dim3(32 * kWarps)},
         "attention of any head_dim", any_dim_kernel, AnyDimParameters{problem, rows, problem.scale * kLog2E});
}

}  // namespace rtp_llm::cuda
