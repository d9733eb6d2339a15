// IEEE half precision, as some checkpoints are stored; the engine itself knows f32 and bf16.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace rtp_llm {

// Exact: every half, subnormals, infinities and NaNs too, is an f32.
inline float widen_float16(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t exponent = half >> 10 & 0x1f, fraction = half & 0x3ff;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, magnitude) | sign);
  }
  const uint32_t wide_exponent = exponent == 0x1f ? 0xff : exponent + (127 - 15);
  return __builtin_bit_cast(float, sign | wide_exponent << 23 | fraction << 13);
}

inline std::vector<float> widen_float16(std::span<const uint16_t> halves) {
  std::vector<float> wide(halves.size());
  for (size_t i = 0; i < halves.size(); ++i) wide[i] = widen_float16(halves[i]);
  return wide;
}

}  // namespace rtp_llm
