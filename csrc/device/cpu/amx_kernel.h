// The inner product of bf16 `linear` on AMX: tiles of 16 x 16 sums, 32 elements of K an instruction.
//
// tdpbf16ps adds to each sum of a tile: (the sum of its 16 even products) + (the sum of its 16 odd products),
// either in ascending K, by fused multiply-adds that flush denormals. One instruction follows the other along K for
// any number of rows, so a row's bits don't depend on it.
#pragma once

#include "device/cpu/linear_kernel.h"

#if defined(__AMX_BF16__)

namespace rtp_llm::cpu {

// The kernel of one region. Owns its thread's tile registers from the first product until it dies.
class AmxKernel {
 public:
  static constexpr int kTileRows = 32;
  static constexpr int64_t kMaxRows = 16 * kTileRows;  // x and sums of a block of K lie in L2
  static constexpr int64_t kFewPanelRows = kMaxRows;

  AmxKernel() = default;
  ~AmxKernel() {
    if (rows_ > 0) _tile_release();
  }
  AmxKernel(const AmxKernel&) = delete;
  AmxKernel& operator=(const AmxKernel&) = delete;

  // As multiply_tile, for `rows` <= kTileRows. REQUIRES: steps % kStepsPerTile == 0.
  void multiply(int64_t rows, const uint32_t* x, int64_t x_stride, const uint32_t* panel, int64_t steps,
                const Prefetch& prefetch, bool accumulate, float* sums) {
    configure(rows);
    const auto product = [&]<int kLines>() {
      if (rows <= kTileSide) return multiply_panel<kLines>(x, x_stride, panel, steps, prefetch.at, accumulate, sums);
      const uint32_t* later = prefetch.at + steps * kLines / 2 * kLanes;
      multiply_half<kLines>(x, x_stride, panel, steps, prefetch.at, accumulate, sums);
      multiply_half<kLines>(x, x_stride, panel + kHalf, steps, later, accumulate, sums + kHalf);
    };
    prefetch.lines == 0   ? product.template operator()<0>()
    : prefetch.lines == 1 ? product.template operator()<1>()
    : prefetch.lines == 2 ? product.template operator()<2>()
                          : product.template operator()<4>();
  }

 private:
  static constexpr int kTileSide = 16;
  static constexpr int kStepsPerTile = kBf16Padding / 2;  // pairs of K
  static constexpr int kHalf = kPanelWidth / 2;
  static constexpr int64_t kPanelRow = kPanelWidth * 4;  // bytes
  static_assert(kPanelVectors == 4 && kStepsPerTile == 16);

  // Tiles 0-3 are sums; 4 and, beyond 16 rows, 5 are rows of x; the others are of the panel.
  void configure(int64_t rows) {
    if (rows == rows_) return;
    rows_ = rows;
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {};
    } config;
    const auto upper = static_cast<uint8_t>(rows < kTileSide ? rows : kTileSide);
    const auto lower = static_cast<uint8_t>(rows <= kTileSide ? upper : rows - kTileSide);
    const uint8_t all[] = {upper, upper, lower, lower, upper, rows <= kTileSide ? uint8_t{kTileSide} : lower, 16, 16};
    std::memcpy(config.rows, all, sizeof(all));
    // The intrinsics before g++ 13 don't say which memory they read.
    asm volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
  }

  // Fetches part `kPart` of 4 of what a step of tiles fetches.
  template <int kCount, int kPart>
  static RTP_INLINE void fetch(const uint32_t* from) {
#pragma GCC unroll 16
    for (int line = 0; line < kCount / 4; ++line)
      __builtin_prefetch(from + (kPart * (kCount / 4) + line) * kLanes, 0, 2);
  }

  // Up to 16 rows by a panel.
  template <int kLines>
  static void multiply_panel(const uint32_t* x, int64_t x_stride, const uint32_t* panel, int64_t steps,
                             const uint32_t* prefetch, bool accumulate, float* sums) {
    constexpr int kFetched = kLines * kStepsPerTile;
    load_sums(accumulate, sums, sums + 16, sums + 32, sums + 48);
    for (int64_t step = 0; step < steps; step += kStepsPerTile) {
      _tile_loadd(4, x + step, x_stride * 4);
      _tile_loadd(5, panel, kPanelRow);
      fetch<kFetched, 0>(prefetch);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, panel + 16, kPanelRow);
      fetch<kFetched, 1>(prefetch);
      _tile_dpbf16ps(1, 4, 6);
      _tile_loadd(7, panel + 32, kPanelRow);
      fetch<kFetched, 2>(prefetch);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(5, panel + 48, kPanelRow);
      fetch<kFetched, 3>(prefetch);
      _tile_dpbf16ps(3, 4, 5);
      panel += kStepsPerTile * kPanelWidth;
      prefetch += kFetched * kLanes;
    }
    store_sums(sums, sums + 16, sums + 32, sums + 48);
  }

  // 17 to 32 rows by half of a panel; fetches half of kLines.
  template <int kLines>
  static void multiply_half(const uint32_t* x, int64_t x_stride, const uint32_t* panel, int64_t steps,
                            const uint32_t* prefetch, bool accumulate, float* sums) {
    constexpr int kFetched = kLines * kStepsPerTile / 2;
    float* const lower = sums + kTileSide * kPanelWidth;
    const uint32_t* const lower_x = x + kTileSide * x_stride;
    load_sums(accumulate, sums, sums + 16, lower, lower + 16);
    for (int64_t step = 0; step < steps; step += kStepsPerTile) {
      _tile_loadd(6, panel, kPanelRow);
      _tile_loadd(4, x + step, x_stride * 4);
      fetch<kFetched, 0>(prefetch);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, panel + 16, kPanelRow);
      fetch<kFetched, 1>(prefetch);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, lower_x + step, x_stride * 4);
      fetch<kFetched, 2>(prefetch);
      _tile_dpbf16ps(2, 5, 6);
      fetch<kFetched, 3>(prefetch);
      _tile_dpbf16ps(3, 5, 7);
      panel += kStepsPerTile * kPanelWidth;
      prefetch += kFetched * kLanes;
    }
    store_sums(sums, sums + 16, lower, lower + 16);
  }

  static RTP_INLINE void load_sums(bool accumulate, const float* a, const float* b, const float* c, const float* d) {
    asm volatile("" : : : "memory");
    if (!accumulate) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      return;
    }
    _tile_loadd(0, a, kPanelRow);
    _tile_loadd(1, b, kPanelRow);
    _tile_loadd(2, c, kPanelRow);
    _tile_loadd(3, d, kPanelRow);
  }

  static RTP_INLINE void store_sums(float* a, float* b, float* c, float* d) {
    _tile_stored(0, a, kPanelRow);
    _tile_stored(1, b, kPanelRow);
    _tile_stored(2, c, kPanelRow);
    _tile_stored(3, d, kPanelRow);
    asm volatile("" : : : "memory");
  }

  int64_t rows_ = 0;  // that the tile registers are configured for
};

}  // namespace rtp_llm::cpu

#endif
