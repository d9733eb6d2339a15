// How a product of activations and panels is cut: regions for the threads, blocks of K for the cache.
#pragma once

#include <algorithm>
#include <type_traits>

#include "device/cpu/amx_kernel.h"
#include "device/cpu/linear_kernel.h"
#include "device/cpu/thread_pool.h"

namespace rtp_llm::cpu {

inline constexpr int64_t kChunkBytes = 256 << 10;  // weights of one claim: a few microseconds of streaming

#if defined(__AMX_BF16__)
template <class Format>
using Kernel = std::conditional_t<std::is_same_v<Format, Bf16Format>, AmxKernel, VectorKernel<Format>>;
#else
template <class Format>
using Kernel = VectorKernel<Format>;
#endif

inline const PanelLinear& panels_of(const char* op, const PackedLinear* weight) {
  check(weight != nullptr, op, ": weight missing");
  return static_cast<const PanelLinear&>(*weight);
}

// One product as the kernel sees it.
template <class Format>
struct Product {
  const typename Format::Input* x;
  int64_t x_stride;
  int64_t rows;
  const PanelLinear* weight;
  Tensor out;
  Tensor residual{};
  int64_t features() const { return weight->spec().out_features(); }  // N
};

// A group of panels of one chunk by a block of rows.
struct Region {
  int64_t first_row, end_row;
  int64_t first_panel, end_panel;
  int64_t num_rows() const { return end_row - first_row; }
  int64_t num_tiles(int64_t tile_rows) const { return (num_rows() + tile_rows - 1) / tile_rows; }
};

inline constexpr int64_t kMaxFewTiles = 16;

// Floats that multiply_blocked writes at most.
template <class Format>
inline constexpr int64_t kBlockedSums = kMaxFewTiles * Kernel<Format>::kTileRows * kPanelWidth;

// sums[row][feature] of a region's rows, at most kMaxFewTiles tiles, by steps [first, end) of one panel.
//
// With a few tiles arithmetic and memory take about as long, so both must go on at once. The panel is cut into blocks
// of K; while the tiles multiply one block they fetch the next, each its share, and at the end the first block of
// `next` (steps of a panel or null). Sums wait in memory between blocks, which changes no bits.
template <class Format>
void multiply_blocked(Kernel<Format>& kernel, const Product<Format>& product, const Region& region, int64_t panel,
                      int64_t first, int64_t end, const uint32_t* next, float* sums) {
  constexpr int64_t kBlockSteps = 65536 / (kPanelWidth * 4);
  constexpr int kTileRows = Kernel<Format>::kTileRows;
  const int64_t tiles = region.num_tiles(kTileRows);
  int shares = kPanelVectors;
  while (shares > tiles) shares /= 2;
  for (int64_t begin = first; begin == first || begin < end; begin += kBlockSteps) {  // no steps: zeros
    const int64_t steps = std::min(kBlockSteps, end - begin);
    const uint32_t* weights = product.weight->panel(panel) + begin * kPanelWidth;
    const uint32_t* fetched = begin + steps < end ? weights + steps * kPanelWidth : next;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t row = region.first_row + tile * kTileRows;
      const bool fetches = fetched != nullptr && tile < shares;
      const Prefetch share = {fetches ? fetched + tile * steps / shares * kPanelWidth : nullptr,
                              fetches ? kPanelVectors / shares : 0};
      kernel.multiply(std::min<int64_t>(kTileRows, region.end_row - row),
                      product.x + row * product.x_stride + begin * Format::kInputsPerStep, product.x_stride, weights,
                      steps, share, begin > first, sums + tile * kTileRows * kPanelWidth);
    }
  }
}

// ---- Leaves of K. A leaf is a run of whole blocks of 64 features, so that heads and tiles are never cut.

inline constexpr int kMaxLeaves = 4;
inline constexpr int kTreeBuffers = 3;  // of sums that multiply_tree needs for kMaxLeaves

// First step of a leaf; leaf == leaves: the end.
template <class Format>
int64_t first_step(int leaf, int leaves, int64_t steps) {
  constexpr int64_t kBlockSteps = std::is_same_v<Format, F32Format> ? 64 : 32;  // a step of bf16 is a pair
  const int64_t blocks = (steps + kBlockSteps - 1) / kBlockSteps;
  return std::min(steps, leaf * blocks / leaves * kBlockSteps);
}

// sums = the leaves, 1, 2 or 4, added pairwise as a binary tree. multiply(leaf, sums) writes one of them. `sums` is the
// first of buffers of `buffer_floats`, of which `floats` hold sums.
template <class Multiply>
RTP_INLINE void multiply_tree(int leaves, int64_t floats, int64_t buffer_floats, float* sums,
                              const Multiply& multiply) {
  if (leaves == 1) return multiply(0, sums);
  const auto add = [&](float* to) {
    for (int64_t i = 0; i < floats; i += kLanes) store(to + i, load(to + i) + load(to + buffer_floats + i));
  };
  for (int pair = 0; pair < leaves / 2; ++pair) {
    float* const at = sums + pair * buffer_floats;
    multiply(2 * pair, at);
    multiply(2 * pair + 1, at + buffer_floats);
    add(at);
  }
  if (leaves == kMaxLeaves) add(sums);
}

// Calls body(region) on the pool's threads. Chunks are groups of panels; where panels are few, also blocks of rows.
template <class Format, class Body>
void for_regions(ThreadPool& pool, int64_t rows, int64_t num_panels, int64_t panel_bytes, Body body) {
  const bool few_panels = num_panels < 4 * pool.num_threads();
  const int64_t block = std::min(rows, few_panels ? Kernel<Format>::kFewPanelRows : Kernel<Format>::kMaxRows);
  const int64_t blocks = (rows + block - 1) / block;
  const int64_t group =
      std::max<int64_t>(1, std::min(kChunkBytes / panel_bytes, num_panels / (8 * pool.num_threads())));
  const int64_t groups = (num_panels + group - 1) / group;
  pool.run(groups * blocks, [&](int64_t chunk, int) {
    const int64_t first_row = chunk % blocks * block, first_panel = chunk / blocks * group;
    body(Region{.first_row = first_row,
                .end_row = std::min(rows, first_row + block),
                .first_panel = first_panel,
                .end_panel = std::min(num_panels, first_panel + group)});
  });
}

}  // namespace rtp_llm::cpu
