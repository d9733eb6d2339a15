// The inner product of `linear`: a tile of a few rows by one panel, sequential in K, one accumulator
// for each (row, feature) whatever the tile's height. So a row's bits don't depend on its neighbours.
#pragma once

#include "device/cpu/panels.h"
#include "device/cpu/vec.h"

namespace rtp_llm::cpu {

// Rows of a tile: kTileRows * kPanelVectors accumulators plus a panel's vectors fit the registers.
#if defined(RTP_CPU_AVX512)
inline constexpr int kTileRows = 6;
#elif defined(RTP_CPU_AVX2)
inline constexpr int kTileRows = 3;
#else
inline constexpr int kTileRows = 2;
#endif

// How one step multiplies: what a row of x looks like, and one multiply-accumulate.
struct F32Format {
  using Input = float;  // one k
  static constexpr int kInputsPerStep = 1;
  struct Weights {
    F32x16 value;
  };
  static RTP_INLINE Weights load_weights(const uint32_t* at) { return {bit_cast16<F32x16>(load_u32(at))}; }
  static RTP_INLINE F32x16 accumulate(const F32x16& sum, const Weights& w, const Input* x) {
    return fma(w.value, splat(x[0]), sum);
  }
};

#if defined(__AVX512BF16__)
// Pairs by vdpbf16ps: exact products, added odd then even to the accumulator.
struct Bf16Format {
  using Input = uint32_t;  // a pair
  static constexpr int kInputsPerStep = 1;
  struct Weights {
    __m512bh pairs;
  };
  static RTP_INLINE Weights load_weights(const uint32_t* at) { return {(__m512bh)_mm512_loadu_si512(at)}; }
  static RTP_INLINE F32x16 accumulate(const F32x16& sum, const Weights& w, const Input* x) {
    const auto pair = (__m512bh)_mm512_set1_epi32(static_cast<int>(x[0]));
    return {{(PartF32)_mm512_dpbf16_ps((__m512)sum.part[0], w.pairs, pair)}};
  }
};
#else
// Pairs widened to f32, multiplied even then odd.
struct Bf16Format {
  using Input = float;  // bf16 values
  static constexpr int kInputsPerStep = 2;
  struct Weights {
    F32x16 even, odd;
  };
  static RTP_INLINE Weights load_weights(const uint32_t* at) {
    const U32x16 pairs = load_u32(at);
    return {bit_cast16<F32x16>(shift_left<16>(pairs)), bit_cast16<F32x16>(pairs & splat_u32(0xffff0000u))};
  }
  static RTP_INLINE F32x16 accumulate(const F32x16& sum, const Weights& w, const Input* x) {
    return fma(w.odd, splat(x[1]), fma(w.even, splat(x[0]), sum));
  }
};
#endif

// sums[row][vector] = (accumulate ? sums : 0) + x[row] * panel over `steps`. Fetches kLines cache lines a
// step into L2, from `prefetch` on.
template <class Format, int kRows, int kLines>
void multiply_tile(const typename Format::Input* x, int64_t x_stride, const uint32_t* panel, int64_t steps,
                   const uint32_t* prefetch, bool accumulate, float* sums) {
  F32x16 total[kRows][kPanelVectors];
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kPanelVectors; ++v)
      total[row][v] = accumulate ? load(sums + row * kPanelWidth + v * kLanes) : zero();
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 4
    for (int line = 0; line < kLines; ++line) __builtin_prefetch(prefetch + line * kLanes, 0, 2);
    prefetch += kLines * kLanes;
#if defined(RTP_CPU_AVX512)
    // 32 registers: the panel's vectors stay, each input is broadcast once.
    typename Format::Weights weights[kPanelVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) weights[v] = Format::load_weights(panel + v * kLanes);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVectors; ++v)
        total[row][v] =
            Format::accumulate(total[row][v], weights[v], x + row * x_stride + step * Format::kInputsPerStep);
#else
    // 16 registers: one of the panel's vectors at a time.
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) {
      const typename Format::Weights weights = Format::load_weights(panel + v * kLanes);
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row)
        total[row][v] = Format::accumulate(total[row][v], weights, x + row * x_stride + step * Format::kInputsPerStep);
    }
#endif
    panel += kPanelWidth;
  }
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kPanelVectors; ++v) store(sums + row * kPanelWidth + v * kLanes, total[row][v]);
}

// What the tiles of one panel fetch: `lines` (0, or a power of two up to kPanelVectors) a step.
struct Prefetch {
  const uint32_t* at = nullptr;
  int lines = 0;
};

// multiply_tile for `rows` <= kRows.
template <class Format, int kRows = kTileRows>
RTP_INLINE void multiply_rows(int64_t rows, const typename Format::Input* x, int64_t x_stride, const uint32_t* panel,
                              int64_t steps, const Prefetch& prefetch, bool accumulate, float* sums) {
  if constexpr (kRows > 1)
    if (rows < kRows)
      return multiply_rows<Format, kRows - 1>(rows, x, x_stride, panel, steps, prefetch, accumulate, sums);
  const auto multiply = [&]<int kLines>() {
    multiply_tile<Format, kRows, kLines>(x, x_stride, panel, steps, prefetch.at, accumulate, sums);
  };
  if (prefetch.lines == 0) return multiply.template operator()<0>();
  if (prefetch.lines == 1) return multiply.template operator()<1>();
  if (prefetch.lines == 2 && kPanelVectors > 2) return multiply.template operator()<2>();
  multiply.template operator()<kPanelVectors>();
}

// The kernel of one region: multiply_rows of a format.
template <class Format>
struct VectorKernel {
  static constexpr int kTileRows = cpu::kTileRows;
  static constexpr int64_t kMaxRows = INT64_MAX;            // of a region
  static constexpr int64_t kFewPanelRows = 64 * kTileRows;  // where panels alone don't feed the threads
  static void multiply(int64_t rows, const typename Format::Input* x, int64_t x_stride, const uint32_t* panel,
                       int64_t steps, const Prefetch& prefetch, bool accumulate, float* sums) {
    multiply_rows<Format>(rows, x, x_stride, panel, steps, prefetch, accumulate, sums);
  }
};

}  // namespace rtp_llm::cpu
