#include "model/random_weights.h"

#include <algorithm>
#include <cstring>

#include "device/checksum.h"

namespace rtp_llm {
namespace {

constexpr float kRange = 0.034641016f;  // sqrt(3) * 0.02
constexpr int64_t kChunkBytes = 4 << 20;

uint64_t split_mix(uint64_t& state) { return mix64(state += 0x9e3779b97f4a7c15ull); }  // SplitMix64

uint64_t hash_of(const std::string& name, uint64_t seed) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325ull ^ seed;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ull;
  return hash;
}

// 16 random bits to a value in [-kRange, kRange).
float scaled(uint16_t bits) { return (static_cast<float>(bits) - 32768.0f) * (kRange / 32768.0f); }

void fill_row(uint64_t state, int64_t count, float* row) {
  for (int64_t i = 0; i < count; i += 4) {
    const uint64_t bits = split_mix(state);
    for (int64_t j = i; j < std::min(i + 4, count); ++j) row[j] = scaled(static_cast<uint16_t>(bits >> 16 * (j - i)));
  }
}

}  // namespace

void write_random_weights(Weights& weights, uint64_t seed) {
  std::vector<float> row;
  std::vector<uint8_t> chunk;
  const DType dtype = weights.config().dtype;
  for (const ExpectedTensor& tensor : weights.expected()) {
    const int64_t rows = tensor.shape[0];
    if (tensor.shape.size() == 1) {
      const bool norm = tensor.name.ends_with("norm.weight");
      row.assign(rows, norm ? 1.0f : 0.0f);
      weights.write(tensor.name, 0, rows, 1, DType::kF32, row.data());
      continue;
    }
    const int64_t width = tensor.shape[1], row_bytes = width * size_of(dtype);
    const int64_t rows_per_chunk = std::max<int64_t>(1, kChunkBytes / row_bytes);
    const uint64_t name_hash = hash_of(tensor.name, seed);
    row.resize(width);
    chunk.resize(std::min(rows, rows_per_chunk) * row_bytes);
    for (int64_t first = 0; first < rows; first += rows_per_chunk) {
      const int64_t count = std::min(rows_per_chunk, rows - first);
      for (int64_t i = 0; i < count; ++i) {
        uint64_t state = name_hash + static_cast<uint64_t>(first + i);
        fill_row(split_mix(state), width, row.data());
        uint8_t* to = chunk.data() + i * row_bytes;
        if (dtype == DType::kF32) {
          std::memcpy(to, row.data(), row_bytes);
        } else {
          std::transform(row.begin(), row.end(), reinterpret_cast<BFloat16*>(to), to_bf16);
        }
      }
      weights.write(tensor.name, first, count, width, dtype, chunk.data());
    }
  }
}

}  // namespace rtp_llm
