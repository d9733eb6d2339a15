// Block hash: what the prefix cache, cache events and peers know a full block by.
//
// The first 16 bytes of SHA-256 over (salt || all tokens up to the block's end, int32
// little-endian), streamed; so pools of different block size match at common borders. Where a
// backend's forms differ, each token is followed by its form byte; where they are equal, tokens
// alone are hashed.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "device/form.h"
#include "kv/sha256.h"

namespace rtp_llm {

struct BlockHash {
  std::array<uint8_t, 16> bytes{};
  auto operator<=>(const BlockHash&) const = default;
  std::string hex() const;
};

// Salt: model digest, adapter, media; joined unambiguously (length-prefixed).
std::string block_hash_salt(const std::string& model_digest, const std::string& adapter = "",
                            const std::string& media = "");

// Hashes a growing sequence block by block. Copyable: a fork goes on from the same state.
class BlockHasher {
 public:
  BlockHasher(const std::string& salt, int block_tokens, bool hash_forms);

  // Appends tokens; each block that becomes full adds one hash to hashes().
  void append(std::span<const int32_t> tokens, Form form);
  // Memory for the hashes of so many tokens, so that append() takes none.
  void reserve(int64_t tokens) { hashes_.reserve(static_cast<size_t>(tokens / block_tokens_)); }
  const std::vector<BlockHash>& hashes() const { return hashes_; }
  int block_tokens() const { return block_tokens_; }
  int64_t num_tokens() const { return num_tokens_; }

 private:
  void hash(std::span<const int32_t> tokens, Form form);

  Sha256 state_;
  int block_tokens_;
  bool hash_forms_;
  int64_t num_tokens_ = 0;
  std::vector<BlockHash> hashes_;
};

}  // namespace rtp_llm

template <>
struct std::hash<rtp_llm::BlockHash> {
  size_t operator()(const rtp_llm::BlockHash& hash) const noexcept {
    size_t value;
    __builtin_memcpy(&value, hash.bytes.data(), sizeof value);
    return value;
  }
};
