// Prefill attention by mma.sync and cp.async: every architecture has them.
//
// A CTA takes tiles of 64 rows of one query head; each of its 4 warps 16 rows. K and V of a block of 128 positions lie
// in shared memory, one of each: V arrives while scores are computed, the next K while V is multiplied.
#include "device/cuda/attention_fold.cuh"
#include "device/cuda/attention_shapes.h"
#include "device/cuda/attention_tiles.cuh"
#include "device/cuda/launch.h"

namespace rtp_llm::cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps, kTile = 16 * kWarps;

struct PlainParameters {
  AttentionProblem problem;
  TileList tiles;
  float log2_scale;
};

int64_t shared_bytes(int head_dim) { return (kTile + 2 * kBlockPositions) * int64_t{head_dim} * 2; }

// Rows of head_dim in shared memory: halves of 64 dims, 128 bytes a row, swizzled.
template <int kRows>
__device__ __forceinline__ uint32_t chunk_at(uint32_t at, int row, int chunk) {
  return at + (chunk >> 3) * (kRows * 128) + row * 128 + (((chunk & 7) ^ (row & 7)) << 4);
}

template <int kHeadDim>
struct PlainTile {
  static constexpr int kChunks = kHeadDim / 8, kSteps = kHeadDim / 16, kUnits = kBlockPositions / kUnitPositions;
  const PlainParameters& p;
  uint32_t q, k, v;  // shared
  const PrefillTile& tile;
  int kv_head;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  __device__ void request_queries(int head) const {
    for (int i = threadIdx.x; i < kTile * kChunks; i += kThreads) {
      const int row = i / kChunks, chunk = i % kChunks, position = tile.position + row;
      const bool inside = position >= tile.begin && position < tile.end;
      const bf16* from = p.problem.q + (inside ? tile.row + row : 0) * p.problem.q_stride + head * kHeadDim + chunk * 8;
      copy_async_16(chunk_at<kTile>(q, row, chunk), from, inside ? 16 : 0);
    }
  }

  // K (plane 0) or V of the block at `base`; zeros behind the segment's end.
  __device__ void request_block(int plane, uint32_t to, int base) const {
    const KvView& kv = p.problem.kv;
    const int32_t* table = p.problem.block_tables + tile.slot * p.problem.block_table_stride;
    const int chunk = threadIdx.x % kChunks;
    for (int row = threadIdx.x / kChunks; row < kBlockPositions; row += kThreads / kChunks) {
      const int position = base + row;
      const uint8_t* from = kv.base;
      if (position < tile.end)
        from += table[position / kv.block_tokens] * kv.block_stride + kv.plane_offset[plane] +
                kv_head * kv.head_stride + position % kv.block_tokens * kv.token_stride + chunk * 16;
      copy_async_16(chunk_at<kBlockPositions>(to, row, chunk), from, position < tile.end ? 16 : 0);
    }
  }

  // scores[unit]: rows g (0, 1, 4, 5) and g + 8 (2, 3, 6, 7); positions 2t, 2t + 1 of the unit's halves.
  __device__ void scores_of(int units, float (&scores)[kUnits][8]) const {
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit)
#pragma unroll
      for (int i = 0; i < 8; ++i) scores[unit][i] = 0.0f;
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      uint32_t a[4];
      load_matrices(a, chunk_at<kTile>(q, warp * 16 + (lane & 15), 2 * j + (lane >> 4)));
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        if (unit >= units) break;
        uint32_t b[4];
        load_matrices(
            b, chunk_at<kBlockPositions>(k, unit * 16 + (lane >> 4) * 8 + (lane & 7), 2 * j + ((lane >> 3) & 1)));
        multiply_add(*reinterpret_cast<float (*)[4]>(&scores[unit][0]), a[0], a[1], a[2], a[3], b[0], b[1]);
        multiply_add(*reinterpret_cast<float (*)[4]>(&scores[unit][4]), a[0], a[1], a[2], a[3], b[2], b[3]);
      }
    }
  }

  __device__ void run(int head) const {
    const int g = lane >> 2, t = lane & 3;
    float maximum[2] = {kNothing, kNothing}, sum[2] = {0.0f, 0.0f}, total[kHeadDim / 8][4] = {};
    const int last_base = tile.position / kBlockPositions * kBlockPositions;
    const int rows_before = tile.position - last_base + warp * 16;  // of the last block, of this warp's row 0

    request_queries(head);
    request_block(0, k, 0);
    commit_copies();
    request_block(1, v, 0);
    commit_copies();
    for (int base = 0; base <= last_base; base += kBlockPositions) {
      const bool masked = base == last_base;
      const int units = masked ? rows_before / kUnitPositions + 1 : kUnits;
      wait_for_copies<1>();
      __syncthreads();
      float scores[kUnits][8];
      scores_of(units, scores);
      __syncthreads();
      if (!masked) request_block(0, k, base + kBlockPositions);
      commit_copies();

      float highest[2] = {kNothing, kNothing};
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit)
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int r = (i >> 1) & 1, position = unit * 16 + (i >> 2) * 8 + 2 * t + (i & 1);
          if (masked && position > rows_before + g + r * 8) scores[unit][i] = kNothing;
          highest[r] = fmaxf(highest[r], scores[unit][i]);
        }
      uint32_t weights[kUnits][4];
      MergeFactors factors[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        highest[r] = fmaxf(highest[r], __shfl_xor_sync(~0u, highest[r], 1));
        highest[r] = fmaxf(highest[r], __shfl_xor_sync(~0u, highest[r], 2));
        highest[r] = block_maximum(highest[r], p.log2_scale);
        factors[r] = merge_maximum(maximum[r], highest[r]);
      }
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          weights[unit][i] = pack_bf16(weight_of(scores[unit][2 * i], p.log2_scale, highest[i & 1]),
                                       weight_of(scores[unit][2 * i + 1], p.log2_scale, highest[i & 1]));

      wait_for_copies<1>();
      __syncthreads();
      float sums[4] = {};
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit)
        if (unit < units)
          multiply_add(sums, weights[unit][0], weights[unit][1], weights[unit][2], weights[unit][3], kOnes, kOnes);
#pragma unroll
      for (int r = 0; r < 2; ++r) sum[r] = merge(sum[r], sums[2 * r], factors[r]);
#pragma unroll
      for (int chunk = 0; chunk < kChunks; chunk += 2) {  // 16 dims
        float out[2][4] = {};
#pragma unroll
        for (int unit = 0; unit < kUnits; ++unit) {
          if (unit >= units) break;
          uint32_t b[4];
          load_matrices_transposed(
              b, chunk_at<kBlockPositions>(v, unit * 16 + ((lane >> 3) & 1) * 8 + (lane & 7), chunk + (lane >> 4)));
          multiply_add(out[0], weights[unit][0], weights[unit][1], weights[unit][2], weights[unit][3], b[0], b[1]);
          multiply_add(out[1], weights[unit][0], weights[unit][1], weights[unit][2], weights[unit][3], b[2], b[3]);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            total[chunk + half][i] = merge(total[chunk + half][i], out[half][i], factors[i >> 1]);
      }
      __syncthreads();
      if (!masked) request_block(1, v, base + kBlockPositions);
      commit_copies();
    }

#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp * 16 + g + r * 8, position = tile.position + row;
      if (position < tile.begin || position >= tile.end) continue;
      bf16* out = p.problem.out + (tile.row + row) * p.problem.out_stride + head * kHeadDim + 2 * t;
      const Quotient quotient(sum[r]);
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk)
        *reinterpret_cast<uint32_t*>(out + chunk * 8) =
            pack_bf16(quotient.of(total[chunk][2 * r]), quotient.of(total[chunk][2 * r + 1]));
    }
  }
};

template <int kHeadDim>
__global__ void __launch_bounds__(kThreads) prefill_plain_kernel(const __grid_constant__ PlainParameters p) {
  extern __shared__ __align__(1024) uint8_t dynamic[];
  const uint32_t q = shared_address(dynamic), k = q + kTile * kHeadDim * 2, v = k + kBlockPositions * kHeadDim * 2;
  const int heads = p.problem.num_heads;
  let_successor_start();
  wait_for_predecessor();
  for (int work = blockIdx.x;; work += gridDim.x) {
    PrefillTile tile;
    if (!p.tiles.find<kTile>(work / heads, tile)) break;
    __syncthreads();  // the tile before has been read
    const int head = work % heads;
    PlainTile<kHeadDim>{p, q, k, v, tile, head / (heads / p.problem.kv.num_heads)}.run(head);
  }
}

template <int kHeadDim>
void launch_plain(cudaStream_t stream, const PlainParameters& p, int ctas) {
  launch(stream,
         {.grid = dim3(static_cast<unsigned>(ctas)),
          .block = dim3(kThreads),
          .shared_bytes = static_cast<size_t>(shared_bytes(kHeadDim))},
         "prefill attention", prefill_plain_kernel<kHeadDim>, p);
}

}  // namespace

void prepare_prefill_plain() {
  prepare_kernel(prefill_plain_kernel<64>, static_cast<size_t>(shared_bytes(64)), "prefill attention");
  prepare_kernel(prefill_plain_kernel<128>, static_cast<size_t>(shared_bytes(128)), "prefill attention");
}

void PagedAttention::prefill_plain(cudaStream_t stream, const AttentionProblem& problem,
                                   const PrefillSegments& segments) const {
  check_attention(problem);
  if (segments.rows.rows == 0) return;
  const PlainParameters p{problem, {segments.segments, segments.count, problem.seq_len}, problem.scale * kLog2E};
  const int64_t most_tiles = segments.rows.rows / kTile + 2 * segments.max_count;
  const int ctas = static_cast<int>(std::min<int64_t>(most_tiles * problem.num_heads, int64_t{8} * num_sms_));
  if (problem.kv.head_dim == 128)
    launch_plain<128>(stream, p, ctas);
  else
    launch_plain<64>(stream, p, ctas);
}

}  // namespace rtp_llm::cuda
