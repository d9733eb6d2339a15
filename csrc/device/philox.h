// Philox4x32-10: the counter-based random numbers behind sampling noise and the checksum's table.
//
// Stateless: a number is a function of (key, counter), so batch, shard and resume don't matter.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <array>
#include <cstdint>

namespace rtp_llm {

using PhiloxBlock = std::array<uint32_t, 4>;

inline constexpr uint32_t kPhiloxMul0 = 0xD2511F53u;
inline constexpr uint32_t kPhiloxMul1 = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
inline constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
inline constexpr int kPhiloxRounds = 10;

constexpr PhiloxBlock philox4x32(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = uint64_t{kPhiloxMul0} * counter[0];
    const uint64_t product1 = uint64_t{kPhiloxMul1} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(product0)};
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return counter;
}

// The sampler's numbers: what a draw is for. Room for speculation's own draws.
enum class NoisePurpose : uint32_t { kToken = 0 };

// u in (0, 1), 23 bits and a half, exact in f32: never 0 and never 1, so that log(-log(u)) is finite.
constexpr float uniform_from_bits(uint32_t bits) { return (static_cast<float>(bits >> 9) + 0.5f) * 0x1p-23f; }

// Key = the seed, counter = (token id, output position, choice, purpose).
constexpr float sampling_uniform(uint64_t seed, uint32_t token, uint32_t output_position, uint32_t choice,
                                 NoisePurpose purpose = NoisePurpose::kToken) {
  const PhiloxBlock block = philox4x32({token, output_position, choice, static_cast<uint32_t>(purpose)},
                                       static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return uniform_from_bits(block[0]);
}

}  // namespace rtp_llm
