// AttentionFold: the online softmax of some query vectors of one kv head over one run of 512 positions.
//
// A *lane* is one query vector: one (row, head). Lanes that share a kv head share the tile reads. Each
// lane folds (m, l, o) over tiles of 64 positions in ascending order and is blind to the other lanes:
//
//   s_j = scale * sum over d, ascending, of q_d k_jd;   m' = max(m, max_j s_j);   c = e^(m - m')
//   p_j = e^(s_j - m'), 0 beyond the row's own position;   l = l c + tree sum of p;
//   o = o c, then + p_j v_j for j ascending
//
// Stretches of 512 merge left to right: M = max(m, m2), a = e^(m - M), b = e^(m2 - M),
// l = l a + l2 b, o = o a + o2 b.
#pragma once

#include <algorithm>
#include <cstdint>

#include "device/cpu/linear_kernel.h"
#include "device/cpu/transpose.h"
#include "device/cpu/vec_math.h"
#include "device/kv_view.h"

namespace rtp_llm::cpu {

inline constexpr int kTilePositions = 64;
inline constexpr int kTileVectors = kTilePositions / kLanes;
inline constexpr int kStretchPositions = 512;

// (m, l, o) of each lane; o is [lanes][padded head_dim].
struct FoldState {
  float* max;
  float* sum;
  float* out;
};

// ---- Small products in registers ---------------------------------------------------------------

// out[r][c] (+)= sum over steps, ascending, of a[r][step] * b[step][c] for kRows x 16 kVectors.
template <int kRows, int kVectors>
RTP_INLINE void product_tile(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t steps,
                             float* out, int64_t out_stride, bool accumulate) {
  F32x16 sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) sums[r][v] = accumulate ? load(out + r * out_stride + v * kLanes) : zero();
  for (int64_t step = 0; step < steps; ++step) {
    F32x16 vectors[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) vectors[v] = load(b + step * b_stride + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(vectors[v], splat(a[r * a_stride + step]), sums[r][v]);
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) store(out + r * out_stride + v * kLanes, sums[r][v]);
}

template <int kRows, int kVectors = kPanelVectors>
void product_columns(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t steps, float* out,
                     int64_t out_stride, int64_t columns, bool accumulate) {
  constexpr int kWidth = kVectors * kLanes;
  int64_t column = 0;
  for (; column + kWidth <= columns; column += kWidth)
    product_tile<kRows, kVectors>(a, a_stride, b + column, b_stride, steps, out + column, out_stride, accumulate);
  if constexpr (kVectors > 1)
    if (column < columns)
      product_columns<kRows, kVectors / 2>(a, a_stride, b + column, b_stride, steps, out + column, out_stride,
                                           columns - column, accumulate);
}

// Any number of rows; columns a multiple of 16. A row's bits don't depend on the number of rows.
template <int kRows = kTileRows>
void product(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t steps, float* out,
             int64_t out_stride, int64_t rows, int64_t columns, bool accumulate) {
  for (; rows >= kRows; rows -= kRows) {
    product_columns<kRows>(a, a_stride, b, b_stride, steps, out, out_stride, columns, accumulate);
    a += kRows * a_stride;
    out += kRows * out_stride;
  }
  if constexpr (kRows > 1)
    if (rows > 0) product<kRows - 1>(a, a_stride, b, b_stride, steps, out, out_stride, rows, columns, accumulate);
}

// ---- Tiles -------------------------------------------------------------------------------------

// 64 positions of one kv head in f32.
struct KvTile {
  float* k_rows;        // [64][padded head_dim], between load and transpose
  float* k_transposed;  // [padded head_dim][64]
  float* v;             // [64][padded head_dim]
};

template <class Stored>
void load_plane(const KvView& kv, int plane, int head, const int32_t* blocks, int64_t first, int count,
                int64_t padded_dim, float* to) {
  for (int i = 0; i < count;) {  // run by run of a block
    const int64_t position = first + i, block = position / kv.block_tokens;
    const int64_t within = position - block * kv.block_tokens;
    const uint8_t* from = kv.base + blocks[block] * kv.block_stride + kv.plane_offset[plane] + head * kv.head_stride +
                          within * kv.token_stride;
    const int64_t end = std::min<int64_t>(count, i + kv.block_tokens - within);
    for (; i < end; ++i, from += kv.token_stride) {
      const auto* vector = reinterpret_cast<const Stored*>(from);
      float* row = to + i * padded_dim;
      for_lanes(kv.head_dim, [&](int64_t d, int64_t n) { store(row + d, load_run(vector + d, n)); });
    }
  }
  if (count < kTilePositions)
    std::memset(to + count * padded_dim, 0, static_cast<size_t>((kTilePositions - count) * padded_dim) * sizeof(float));
}

// Positions [first, first + count), the rest zero. `blocks`: the sequence's block table.
inline void load_tile(const KvView& kv, int head, const int32_t* blocks, int64_t first, int count, int64_t padded_dim,
                      const KvTile& tile) {
  if (kv.dtype == DType::kF32) {
    load_plane<float>(kv, 0, head, blocks, first, count, padded_dim, tile.k_rows);
    load_plane<float>(kv, 1, head, blocks, first, count, padded_dim, tile.v);
  } else {
    load_plane<BFloat16>(kv, 0, head, blocks, first, count, padded_dim, tile.k_rows);
    load_plane<BFloat16>(kv, 1, head, blocks, first, count, padded_dim, tile.v);
  }
  transpose_words(reinterpret_cast<const uint32_t*>(tile.k_rows), padded_dim, kTilePositions, padded_dim,
                  reinterpret_cast<uint32_t*>(tile.k_transposed), kTilePositions);
}

// ---- The fold ----------------------------------------------------------------------------------

inline void scale_vector(float* out, int64_t padded_dim, float factor) {
  for (int64_t d = 0; d < padded_dim; d += kLanes) store(out + d, load(out + d) * splat(factor));
}

// Scores of one lane become its p; updates m and l and rescales o.
inline void softmax_lane(float* scores, int valid, float scale, int64_t padded_dim, float& max_seen, float& sum,
                         float* out) {
  F32x16 s[kTileVectors];
  I32x16 inside[kTileVectors];
  F32x16 top = splat(-kInfinity);
  for (int v = 0; v < kTileVectors; ++v) {
    inside[v] = less(lane_indices(), splat_i32(valid - v * kLanes));
    s[v] = select(inside[v], load(scores + v * kLanes) * splat(scale), splat(-kInfinity));
    top = max(top, s[v]);
  }
  const float tile_max = reduce_max(top);
  const float new_max = max_seen > tile_max ? max_seen : tile_max;
  for (int v = 0; v < kTileVectors; ++v) {
    s[v] = select(inside[v], exp(s[v] - splat(new_max)), zero());
    store(scores + v * kLanes, s[v]);
  }
  const float tile_sum = reduce_add((s[0] + s[1]) + (s[2] + s[3]));
  if (new_max != max_seen) {  // otherwise c = e^0 = 1 exactly
    const float correction = exp_scalar(max_seen - new_max);
    sum *= correction;
    scale_vector(out, padded_dim, correction);
  }
  sum += tile_sum;
  max_seen = new_max;
}

// Folds `lanes` lanes with the same number of valid positions over one tile.
inline void fold_tile(const KvTile& tile, const float* q, int64_t lanes, int valid, float scale, int64_t padded_dim,
                      float* scores, const FoldState& state) {
  product(q, padded_dim, tile.k_transposed, kTilePositions, padded_dim, scores, kTilePositions, lanes, kTilePositions,
          false);
  for (int64_t lane = 0; lane < lanes; ++lane)
    softmax_lane(scores + lane * kTilePositions, valid, scale, padded_dim, state.max[lane], state.sum[lane],
                 state.out + lane * padded_dim);
  product(scores, kTilePositions, tile.v, padded_dim, valid, state.out, padded_dim, lanes, padded_dim, true);
}

inline void reset(const FoldState& state, int64_t lanes, int64_t padded_dim) {
  std::fill_n(state.max, lanes, -kInfinity);
  std::fill_n(state.sum, lanes, 0.0f);
  std::fill_n(state.out, lanes * padded_dim, 0.0f);
}

// left = left merged with the stretch to its right.
inline void merge(const FoldState& left, const FoldState& right, int64_t lanes, int64_t padded_dim) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const float m = left.max[lane] > right.max[lane] ? left.max[lane] : right.max[lane];
    const float a = exp_scalar(left.max[lane] - m), b = exp_scalar(right.max[lane] - m);
    left.sum[lane] = left.sum[lane] * a + right.sum[lane] * b;
    float* out = left.out + lane * padded_dim;
    const float* other = right.out + lane * padded_dim;
    for (int64_t d = 0; d < padded_dim; d += kLanes)
      store(out + d, fma(load(other + d), splat(b), load(out + d) * splat(a)));
    left.max[lane] = m;
  }
}

}  // namespace rtp_llm::cpu
