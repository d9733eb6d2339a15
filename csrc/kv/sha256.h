// SHA-256 (FIPS 180-4), streamed and copyable. Own code because the engine links no crypto library.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace rtp_llm {

class Sha256 {
 public:
  Sha256();
  void update(std::span<const uint8_t> bytes);
  // Digest of all bytes so far; the state is left as it was, so hashing can go on.
  std::array<uint8_t, 32> digest() const;

 private:
  void compress(const uint8_t* block);

  std::array<uint32_t, 8> state_;
  std::array<uint8_t, 64> pending_{};
  uint64_t num_bytes_ = 0;
};

// Lower-case hex.
std::string to_hex(std::span<const uint8_t> bytes);
std::string sha256_hex(std::string_view text);

}  // namespace rtp_llm
