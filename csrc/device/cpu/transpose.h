// Transposing matrices of 32-bit words: K tiles of attention, rows of weights on their way to panels.
#pragma once

#include <cstdint>
#include <cstring>

#include "device/cpu/vec.h"

namespace rtp_llm::cpu {

// Lane 4q + i of the result is lane `index[i]` of quarter q of a, or with 4 and above of b.
template <int kFirst, int kSecond, int kThird, int kFourth>
RTP_INLINE PartI32 shuffle_quarters(PartI32 a, PartI32 b) {
  constexpr int kIndex[4] = {kFirst, kSecond, kThird, kFourth};
  PartI32 lanes{};
  for (int i = 0; i < kPartLanes; ++i) {
    const int from = kIndex[i % 4];
    lanes[i] = i / 4 * 4 + (from < 4 ? from : from - 4 + kPartLanes);
  }
  return __builtin_shuffle(a, b, lanes);
}

// Quarter q is the four words at from + q * stride.
RTP_INLINE PartI32 load_quarters(const uint32_t* from, int64_t stride) {
#if defined(RTP_CPU_AVX512)
  const auto quarter = [&](int q) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + q * stride)); };
  __m512i all = _mm512_castsi128_si512(quarter(0));
  all = _mm512_inserti32x4(all, quarter(1), 1);
  all = _mm512_inserti32x4(all, quarter(2), 2);
  return (PartI32)_mm512_inserti32x4(all, quarter(3), 3);
#elif defined(RTP_CPU_AVX2)
  const auto quarter = [&](int q) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + q * stride)); };
  return (PartI32)_mm256_inserti128_si256(_mm256_castsi128_si256(quarter(0)), quarter(1), 1);
#else
  (void)stride;
  PartI32 all;
  std::memcpy(&all, from, sizeof(all));
  return all;
#endif
}

// Four columns of kPartLanes rows: the rows' quarters lie side by side, so that a transpose within
// quarters leaves whole vectors of kPartLanes rows.
RTP_INLINE void transpose_four_columns(const uint32_t* from, int64_t from_stride, uint32_t* to, int64_t to_stride) {
  PartI32 row[4];
  for (int r = 0; r < 4; ++r) row[r] = load_quarters(from + r * from_stride, 4 * from_stride);
  const PartI32 low01 = shuffle_quarters<0, 4, 1, 5>(row[0], row[1]);
  const PartI32 high01 = shuffle_quarters<2, 6, 3, 7>(row[0], row[1]);
  const PartI32 low23 = shuffle_quarters<0, 4, 1, 5>(row[2], row[3]);
  const PartI32 high23 = shuffle_quarters<2, 6, 3, 7>(row[2], row[3]);
  const PartI32 columns[4] = {shuffle_quarters<0, 1, 4, 5>(low01, low23), shuffle_quarters<2, 3, 6, 7>(low01, low23),
                              shuffle_quarters<0, 1, 4, 5>(high01, high23),
                              shuffle_quarters<2, 3, 6, 7>(high01, high23)};
  for (int c = 0; c < 4; ++c) std::memcpy(to + c * to_stride, &columns[c], sizeof(PartI32));
}

// to[column][row] = from[row][column].
inline void transpose_words(const uint32_t* from, int64_t from_stride, int64_t rows, int64_t columns, uint32_t* to,
                            int64_t to_stride) {
  const int64_t whole_rows = rows / kPartLanes * kPartLanes, whole_columns = columns / 4 * 4;
  for (int64_t column = 0; column < whole_columns; column += 4)
    for (int64_t row = 0; row < whole_rows; row += kPartLanes)
      transpose_four_columns(from + row * from_stride + column, from_stride, to + column * to_stride + row, to_stride);
  for (int64_t column = 0; column < columns; ++column)
    for (int64_t row = column < whole_columns ? whole_rows : 0; row < rows; ++row)
      to[column * to_stride + row] = from[row * from_stride + column];
}

}  // namespace rtp_llm::cpu
