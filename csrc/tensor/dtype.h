// Element types of tensors and KV blocks.
#pragma once

#include <cstdint>
#include <string_view>

#include "tensor/check.h"

namespace rtp_llm {

enum class DType : uint8_t { kF32, kBF16, kI32, kI64, kU8 };

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kBF16: return 2;
    case DType::kI64: return 8;
    case DType::kU8: return 1;
  }
  return 0;
}

// Hugging Face's names: "float32", "bfloat16", "int32", "int64", "uint8".
constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "float32";
    case DType::kBF16: return "bfloat16";
    case DType::kI32: return "int32";
    case DType::kI64: return "int64";
    case DType::kU8: return "uint8";
  }
  return "?";
}

// Throws InvalidArgument, naming the value, for anything that name_of doesn't return.
inline DType dtype_from_name(std::string_view name) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kI32, DType::kI64, DType::kU8})
    if (name_of(dtype) == name) return dtype;
  throw InvalidArgument(concat("unknown dtype '", name, "'"));
}

// A bf16 value is the upper half of an fp32; rounding is to nearest even.
struct BFloat16 {
  uint16_t bits;
};

inline float to_f32(BFloat16 value) { return __builtin_bit_cast(float, static_cast<uint32_t>(value.bits) << 16); }

inline BFloat16 to_bf16(float value) {
  uint32_t bits = __builtin_bit_cast(uint32_t, value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40)};  // quiet NaN
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

}  // namespace rtp_llm
