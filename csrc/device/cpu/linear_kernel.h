// The inner product of `linear`: a tile of a few rows by one panel, sequential in K, one accumulator
// for each (row, feature) whatever the tile's height. So a row's bits don't depend on its neighbours.
#pragma once

#include "device/cpu/panels.h"
#include "device/cpu/vec.h"

namespace rtp_llm::cpu {

// Rows of a tile: kTileRows * kPanelVectors accumulators plus a panel's vectors fit the registers.
#if defined(RTP_CPU_AVX512)
inline constexpr int kTileRows = 6;
#else
inline constexpr int kTileRows = 3;
#endif

// How one step multiplies: what a row of x looks like, and one multiply-accumulate.
struct F32Format {
  using Input = float;  // one k
  static constexpr int kInputsPerStep = 1;
  struct Weights {
    F32x16 value;
  };
  static RTP_INLINE Weights load_weights(const uint32_t* at) {
    return {bit_cast16<F32x16>(load_u32(at))};
  }
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
  static RTP_INLINE Weights load_weights(const uint32_t* at) {
    return {(__m512bh)_mm512_loadu_si512(at)};
  }
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
    return {bit_cast16<F32x16>(shift_left<16>(pairs)),
            bit_cast16<F32x16>(pairs & splat_u32(0xffff0000u))};
  }
  static RTP_INLINE F32x16 accumulate(const F32x16& sum, const Weights& w, const Input* x) {
    return fma(w.odd, splat(x[1]), fma(w.even, splat(x[0]), sum));
  }
};
#endif

// sums[row][vector] += x[row] * panel over `steps`. Prefetches `prefetch_bytes` ahead in the panel.
template <class Format, int kRows>
RTP_INLINE void multiply_tile(const typename Format::Input* x, int64_t x_stride,
                              const uint32_t* panel, int64_t steps,
                              F32x16 (&sums)[kRows][kPanelVectors]) {
  constexpr int kPrefetchBytes = 4096;
  for (int64_t step = 0; step < steps; ++step) {
    if constexpr (kRows == 1) {
      const char* ahead = reinterpret_cast<const char*>(panel) + kPrefetchBytes;
      for (int line = 0; line < kPanelVectors; ++line) __builtin_prefetch(ahead + line * 64, 0, 2);
    }
    typename Format::Weights weights[kPanelVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) weights[v] = Format::load_weights(panel + v * kLanes);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVectors; ++v)
        sums[row][v] = Format::accumulate(sums[row][v], weights[v],
                                          x + row * x_stride + step * Format::kInputsPerStep);
    panel += kPanelWidth;
  }
}

}  // namespace rtp_llm::cpu
