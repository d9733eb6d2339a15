// The KV checksum: its definition, as readable scalar code. `Ops::checksum` computes the same fast.
//
// For the u32 words w of one head_dim vector in wire dtype (little-endian, padded with zero words to
// an even number):
//   h = sum over even i of (w[i] + a[i] mod 2^32) * (w[i+1] + a[i+1] mod 2^32)   mod 2^64
// and the vector contributes mix64(h + key), where key packs (group, layer, plane, kv_head, absolute
// position). Contributions add mod 2^64: independent of order, block size and tensor parallelism,
// and a vector at the wrong place is seen.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "device/philox.h"
#include "tensor/check.h"

namespace rtp_llm {

// Where a vector belongs.
struct ChecksumKey {
  int group = 0;         // < 2^8
  int layer = 0;         // index within the group, < 2^10
  int plane = 0;         // < 2^4
  int head = 0;          // kv head over all shards, < 2^10
  int64_t position = 0;  // absolute, < 2^32
};

constexpr uint64_t pack_checksum_key(const ChecksumKey& key) {
  return static_cast<uint64_t>(key.group) << 56 | static_cast<uint64_t>(key.layer) << 46 |
         static_cast<uint64_t>(key.plane) << 42 | static_cast<uint64_t>(key.head) << 32 |
         static_cast<uint64_t>(key.position);
}

// SplitMix64's finalizer. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number
// generators", 2014 (Stafford's variant 13).
constexpr uint64_t mix64(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// Longest vector: 1,024 elements of f32.
inline constexpr int kMaxChecksumWords = 1024;

// a[i] = word i mod 4 of Philox4x32-10(key 0, counter i / 4).
inline constexpr std::array<uint32_t, kMaxChecksumWords> kChecksumTable = [] {
  std::array<uint32_t, kMaxChecksumWords> table{};
  for (uint32_t block = 0; block < kMaxChecksumWords / 4; ++block) {
    const PhiloxBlock words = philox4x32({block, 0, 0, 0}, 0, 0);
    for (uint32_t i = 0; i < 4; ++i) table[block * 4 + i] = words[i];
  }
  return table;
}();

// REQUIRES: bytes <= 4 * kMaxChecksumWords.
inline uint64_t checksum_of_vector(const void* vector, int64_t bytes, uint64_t packed_key) {
  const auto* at = static_cast<const uint8_t*>(vector);
  const auto word = [&](int64_t i) {
    uint32_t value = 0;
    const int64_t left = bytes - i * 4;
    if (left > 0) std::memcpy(&value, at + i * 4, static_cast<size_t>(left < 4 ? left : 4));
    return value;
  };
  uint64_t h = 0;
  for (int64_t i = 0; i * 4 < bytes; i += 2)
    h += uint64_t{word(i) + kChecksumTable[i]} * uint64_t{word(i + 1) + kChecksumTable[i + 1]};
  return mix64(h + packed_key);
}

}  // namespace rtp_llm
