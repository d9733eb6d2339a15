// One SIMD width for all levels: 16 lanes of 32 bits, kept in 1 (AVX-512), 2 (AVX2) or 4 parts.
//
// Kernels are written once against F32x16. Arithmetic is IEEE and lane-wise; `fma` is fused where the
// level has it (AVX-512, AVX2) and a product and a sum where it hasn't (generic), so bits agree within
// a level, not across levels. Reductions fold in one fixed tree: lane i with i + 8, then 4, 2, 1.
#pragma once

#include <cstdint>
#include <cstring>

#include "tensor/dtype.h"

#if defined(__AVX2__) || defined(__SSE2__)
// g++ 12 takes the deliberately undefined pass-through operands of AVX-512 intrinsics for a mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace rtp_llm::cpu {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define RTP_CPU_AVX512 1
inline constexpr int kPartLanes = 16;
#elif defined(__AVX2__) && defined(__FMA__)
#define RTP_CPU_AVX2 1
inline constexpr int kPartLanes = 8;
#else
inline constexpr int kPartLanes = 4;
#endif

inline constexpr int kLanes = 16;
inline constexpr int kParts = kLanes / kPartLanes;

typedef float PartF32 __attribute__((vector_size(kPartLanes * 4)));
typedef int32_t PartI32 __attribute__((vector_size(kPartLanes * 4)));
typedef uint32_t PartU32 __attribute__((vector_size(kPartLanes * 4)));
typedef uint16_t PartU16 __attribute__((vector_size(kPartLanes * 2)));

struct F32x16 {
  PartF32 part[kParts];
};
struct I32x16 {  // also masks: all bits of a lane set or none
  PartI32 part[kParts];
};
struct U32x16 {
  PartU32 part[kParts];
};

#define RTP_INLINE inline __attribute__((always_inline))

// The statement for each part i, written out: g++ keeps vectors of several parts in registers only if
// there is no loop over the parts.
#define RTP_PART(index, ...)   \
  {                            \
    constexpr int i = (index); \
    __VA_ARGS__                \
  }
#if defined(RTP_CPU_AVX512)
#define RTP_EACH_PART(...) RTP_PART(0, __VA_ARGS__)
#elif defined(RTP_CPU_AVX2)
#define RTP_EACH_PART(...) RTP_PART(0, __VA_ARGS__) RTP_PART(1, __VA_ARGS__)
#else
#define RTP_EACH_PART(...) \
  RTP_PART(0, __VA_ARGS__) RTP_PART(1, __VA_ARGS__) RTP_PART(2, __VA_ARGS__) RTP_PART(3, __VA_ARGS__)
#endif

// ---- Parts -------------------------------------------------------------------------------------

RTP_INLINE PartF32 fma_part(PartF32 a, PartF32 b, PartF32 c) {
#if defined(RTP_CPU_AVX512)
  return (PartF32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(RTP_CPU_AVX2)
  return (PartF32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// As the max instruction: b if either is NaN.
RTP_INLINE PartF32 max_part(PartF32 a, PartF32 b) {
#if defined(RTP_CPU_AVX512)
  return (PartF32)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(RTP_CPU_AVX2)
  return (PartF32)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// ---- Construction, loads, stores ---------------------------------------------------------------

RTP_INLINE F32x16 splat(float value) {
  F32x16 out;
  RTP_EACH_PART(out.part[i] = value - PartF32{};)
  return out;
}

RTP_INLINE I32x16 splat_i32(int32_t value) {
  I32x16 out;
  RTP_EACH_PART(out.part[i] = PartI32{} + value;)
  return out;
}

RTP_INLINE U32x16 splat_u32(uint32_t value) {
  U32x16 out;
  RTP_EACH_PART(out.part[i] = PartU32{} + value;)
  return out;
}

RTP_INLINE F32x16 zero() { return splat(0.0f); }

RTP_INLINE F32x16 load(const float* from) {
  F32x16 out;
  RTP_EACH_PART(std::memcpy(&out.part[i], from + i * kPartLanes, sizeof(PartF32));)
  return out;
}

RTP_INLINE U32x16 load_u32(const uint32_t* from) {
  U32x16 out;
  RTP_EACH_PART(std::memcpy(&out.part[i], from + i * kPartLanes, sizeof(PartU32));)
  return out;
}

RTP_INLINE void store(float* to, const F32x16& value) {
  RTP_EACH_PART(std::memcpy(to + i * kPartLanes, &value.part[i], sizeof(PartF32));)
}

// The low 16 bits of 16 lanes.
RTP_INLINE U32x16 load_u16(const uint16_t* from) {
  U32x16 out;
  RTP_EACH_PART(PartU16 narrow; std::memcpy(&narrow, from + i * kPartLanes, sizeof(narrow));
                out.part[i] = __builtin_convertvector(narrow, PartU32);)
  return out;
}

RTP_INLINE void store_u16(uint16_t* to, const U32x16& value) {
  RTP_EACH_PART(const PartU16 narrow = __builtin_convertvector(value.part[i], PartU16);
                std::memcpy(to + i * kPartLanes, &narrow, sizeof(narrow));)
}

RTP_INLINE I32x16 lane_indices() {
  alignas(64) static constexpr int32_t kIota[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  I32x16 out;
  RTP_EACH_PART(std::memcpy(&out.part[i], kIota + i * kPartLanes, sizeof(PartI32));)
  return out;
}

// ---- Lane-wise operators -----------------------------------------------------------------------

#define RTP_VEC_OPERATOR(Type, symbol)                            \
  RTP_INLINE Type operator symbol(const Type& a, const Type& b) { \
    Type out;                                                     \
    RTP_EACH_PART(out.part[i] = a.part[i] symbol b.part[i];)      \
    return out;                                                   \
  }
RTP_VEC_OPERATOR(F32x16, +)
RTP_VEC_OPERATOR(F32x16, -)
RTP_VEC_OPERATOR(F32x16, *)
RTP_VEC_OPERATOR(F32x16, /)
RTP_VEC_OPERATOR(I32x16, +)
RTP_VEC_OPERATOR(I32x16, -)
RTP_VEC_OPERATOR(I32x16, &)
RTP_VEC_OPERATOR(I32x16, |)
RTP_VEC_OPERATOR(U32x16, +)
RTP_VEC_OPERATOR(U32x16, ^)
RTP_VEC_OPERATOR(U32x16, &)
RTP_VEC_OPERATOR(U32x16, |)
#undef RTP_VEC_OPERATOR

#define RTP_VEC_COMPARE(name, symbol)                                   \
  RTP_INLINE I32x16 name(const F32x16& a, const F32x16& b) {            \
    I32x16 out;                                                         \
    RTP_EACH_PART(out.part[i] = (PartI32)(a.part[i] symbol b.part[i]);) \
    return out;                                                         \
  }
RTP_VEC_COMPARE(greater, >)
RTP_VEC_COMPARE(greater_equal, >=)
RTP_VEC_COMPARE(less, <)
#undef RTP_VEC_COMPARE

RTP_INLINE I32x16 less(const I32x16& a, const I32x16& b) {
  I32x16 out;
  RTP_EACH_PART(out.part[i] = (PartI32)(a.part[i] < b.part[i]);)
  return out;
}

RTP_INLINE F32x16 select(const I32x16& mask, const F32x16& yes, const F32x16& no) {
  F32x16 out;
  RTP_EACH_PART(out.part[i] = mask.part[i] ? yes.part[i] : no.part[i];)
  return out;
}

RTP_INLINE bool any(const I32x16& mask) {
#if defined(RTP_CPU_AVX512)
  return _mm512_movepi32_mask((__m512i)mask.part[0]) != 0;
#else
  int32_t lanes[kLanes];
  std::memcpy(lanes, &mask, sizeof(lanes));
  int32_t all = 0;
  for (int32_t lane : lanes) all |= lane;
  return all != 0;
#endif
}

RTP_INLINE F32x16 fma(const F32x16& a, const F32x16& b, const F32x16& c) {
  F32x16 out;
  RTP_EACH_PART(out.part[i] = fma_part(a.part[i], b.part[i], c.part[i]);)
  return out;
}

RTP_INLINE F32x16 max(const F32x16& a, const F32x16& b) {
  F32x16 out;
  RTP_EACH_PART(out.part[i] = max_part(a.part[i], b.part[i]);)
  return out;
}

RTP_INLINE F32x16 min(const F32x16& a, const F32x16& b) { return select(less(a, b), a, b); }

template <int kBits>
RTP_INLINE U32x16 shift_left(const U32x16& a) {
  U32x16 out;
  RTP_EACH_PART(out.part[i] = a.part[i] << kBits;)
  return out;
}

template <int kBits>
RTP_INLINE U32x16 shift_right(const U32x16& a) {
  U32x16 out;
  RTP_EACH_PART(out.part[i] = a.part[i] >> kBits;)
  return out;
}

template <class To, class From>
RTP_INLINE To bit_cast16(const From& from) {
  To out;
  RTP_EACH_PART(out.part[i] = (decltype(out.part[i] + out.part[i]))from.part[i];)
  return out;
}

RTP_INLINE F32x16 to_float(const I32x16& a) {
  F32x16 out;
  RTP_EACH_PART(out.part[i] = __builtin_convertvector(a.part[i], PartF32);)
  return out;
}

// 32 x 32 -> 64 bit product of each lane with one number.
RTP_INLINE void multiply_wide(const U32x16& a, uint32_t b, U32x16& high, U32x16& low) {
  for (int i = 0; i < kParts; ++i) {
#if defined(RTP_CPU_AVX512)
    const __m512i x = (__m512i)a.part[i], y = _mm512_set1_epi32(static_cast<int>(b));
    const __m512i even = _mm512_mul_epu32(x, y);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), y);
    high.part[i] = (PartU32)_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
    low.part[i] = (PartU32)_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
#elif defined(RTP_CPU_AVX2)
    const __m256i x = (__m256i)a.part[i], y = _mm256_set1_epi32(static_cast<int>(b));
    const __m256i even = _mm256_mul_epu32(x, y);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), y);
    high.part[i] = (PartU32)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    low.part[i] = (PartU32)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
#else
    PartU32 part_high{}, part_low{};
    for (int lane = 0; lane < kPartLanes; ++lane) {
      const uint64_t product = uint64_t{a.part[i][lane]} * b;
      part_high[lane] = static_cast<uint32_t>(product >> 32);
      part_low[lane] = static_cast<uint32_t>(product);
    }
    high.part[i] = part_high;
    low.part[i] = part_low;
#endif
  }
}

// ---- Reductions, fixed tree --------------------------------------------------------------------

typedef float F32x4 __attribute__((vector_size(16)));

// fold(fold(lanes 0-3, 8-11), fold(lanes 4-7, 12-15)).
template <class Fold>
RTP_INLINE F32x4 fold_to_4(const F32x16& value, Fold fold) {
  struct Quarters {
    F32x4 quarter[4];
  };
  const Quarters q = __builtin_bit_cast(Quarters, value);
  return fold(fold(q.quarter[0], q.quarter[2]), fold(q.quarter[1], q.quarter[3]));
}

RTP_INLINE float reduce_add(const F32x16& value) {
  const F32x4 four = fold_to_4(value, [](F32x4 a, F32x4 b) { return a + b; });
  return (four[0] + four[2]) + (four[1] + four[3]);
}

RTP_INLINE float reduce_max(const F32x16& value) {
  const F32x4 four = fold_to_4(value, [](F32x4 a, F32x4 b) { return a > b ? a : b; });
  const float even = four[0] > four[2] ? four[0] : four[2];
  const float odd = four[1] > four[3] ? four[1] : four[3];
  return even > odd ? even : odd;
}

// ---- bf16 --------------------------------------------------------------------------------------

RTP_INLINE F32x16 widen_bf16(const U32x16& bits) { return bit_cast16<F32x16>(shift_left<16>(bits)); }

// To nearest even, as rtp_llm::to_bf16, denormals too; NaNs become quiet.
RTP_INLINE U32x16 round_bf16(const F32x16& value) {
  const U32x16 bits = bit_cast16<U32x16>(value);
  const U32x16 odd = shift_right<16>(bits) & splat_u32(1);
  const U32x16 rounded = shift_right<16>(bits + splat_u32(0x7fff) + odd);
  const U32x16 quiet = shift_right<16>(bits) | splat_u32(0x40);
  const I32x16 is_nan = less(splat_i32(0x7f800000), bit_cast16<I32x16>(bits & splat_u32(0x7fffffff)));
  return bit_cast16<U32x16>(select(is_nan, bit_cast16<F32x16>(quiet), bit_cast16<F32x16>(rounded)));
}

RTP_INLINE F32x16 load(const BFloat16* from) { return widen_bf16(load_u16(reinterpret_cast<const uint16_t*>(from))); }

RTP_INLINE void store(BFloat16* to, const F32x16& value) {
  store_u16(reinterpret_cast<uint16_t*>(to), round_bf16(value));
}

// ---- The first n < 16 lanes --------------------------------------------------------------------

template <class T>
RTP_INLINE F32x16 load_first(const T* from, int64_t n) {
  T lanes[kLanes] = {};
  std::memcpy(lanes, from, static_cast<size_t>(n) * sizeof(T));
  return load(lanes);
}

template <class T>
RTP_INLINE void store_first(T* to, const F32x16& value, int64_t n) {
  T lanes[kLanes];
  store(lanes, value);
  std::memcpy(to, lanes, static_cast<size_t>(n) * sizeof(T));
}

// Calls body(i, n) for runs of 16 and, with n < 16, for the rest of [0, count).
template <class Body>
RTP_INLINE void for_lanes(int64_t count, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, int64_t{kLanes});
  if (i < count) body(i, count - i);
}

template <class T>
RTP_INLINE F32x16 load_run(const T* from, int64_t n) {
  return n == kLanes ? load(from) : load_first(from, n);
}

template <class T>
RTP_INLINE void store_run(T* to, const F32x16& value, int64_t n) {
  n == kLanes ? store(to, value) : store_first(to, value, n);
}

}  // namespace rtp_llm::cpu
