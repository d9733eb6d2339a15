#include "kv/sha256.h"

#include <algorithm>
#include <cstring>

#include "kv/sha256_compress.h"

namespace rtp_llm {
namespace {

constexpr size_t kBlockBytes = 64;

}  // namespace

Sha256::Sha256()
    : state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {}

void Sha256::update(std::span<const uint8_t> bytes) {
  size_t held = num_bytes_ % kBlockBytes;
  num_bytes_ += bytes.size();
  if (held != 0) {
    const size_t taken = std::min(kBlockBytes - held, bytes.size());
    std::memcpy(pending_.data() + held, bytes.data(), taken);
    bytes = bytes.subspan(taken);
    if (held + taken < kBlockBytes) return;
    compress(pending_.data());
  }
  for (; bytes.size() >= kBlockBytes; bytes = bytes.subspan(kBlockBytes)) compress(bytes.data());
  if (!bytes.empty()) std::memcpy(pending_.data(), bytes.data(), bytes.size());
}

std::array<uint8_t, 32> Sha256::digest() const {
  // Padding (5.1.1): a one bit, zeros, the length in bits as 64 bits big-endian.
  Sha256 last = *this;
  const uint64_t num_bits = num_bytes_ * 8;
  std::array<uint8_t, kBlockBytes + 8> padding{0x80};
  const size_t held = num_bytes_ % kBlockBytes;
  const size_t zeros_end = held < 56 ? 56 - held : 120 - held;
  for (int i = 0; i < 8; ++i) padding[zeros_end + i] = static_cast<uint8_t>(num_bits >> (56 - 8 * i));
  last.update(std::span(padding).first(zeros_end + 8));

  std::array<uint8_t, 32> digest;
  for (size_t i = 0; i < digest.size(); ++i) digest[i] = static_cast<uint8_t>(last.state_[i / 4] >> (24 - 8 * (i % 4)));
  return digest;
}

void Sha256::compress(const uint8_t* block) {
  static const auto best = has_sha256_instructions() ? compress_sha256_by_instructions : compress_sha256_portably;
  best(state_, block);
}

std::string to_hex(std::span<const uint8_t> bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(bytes.size() * 2);
  for (uint8_t byte : bytes) text += {kDigits[byte >> 4], kDigits[byte & 15]};
  return text;
}

std::string sha256_hex(std::string_view text) {
  Sha256 hash;
  hash.update({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  return to_hex(hash.digest());
}

}  // namespace rtp_llm
