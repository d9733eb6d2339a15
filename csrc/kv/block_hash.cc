#include "kv/block_hash.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "tensor/check.h"

namespace rtp_llm {
namespace {

// A field of the salt, length first (u64 little-endian): no two triples of fields join to the same bytes.
void append_field(std::string& salt, const std::string& field) {
  for (int i = 0; i < 8; ++i) salt += static_cast<char>(uint64_t{field.size()} >> (8 * i));
  salt += field;
}

}  // namespace

std::string BlockHash::hex() const { return to_hex(bytes); }

std::string block_hash_salt(const std::string& model_digest, const std::string& adapter, const std::string& media) {
  std::string salt;
  for (const std::string* field : {&model_digest, &adapter, &media}) append_field(salt, *field);
  return salt;
}

BlockHasher::BlockHasher(const std::string& salt, int block_tokens, bool hash_forms)
    : block_tokens_(block_tokens), hash_forms_(hash_forms) {
  check(block_tokens > 0, "block_tokens must be positive, got ", block_tokens);
  state_.update({reinterpret_cast<const uint8_t*>(salt.data()), salt.size()});
}

void BlockHasher::append(std::span<const int32_t> tokens, Form form) {
  while (!tokens.empty()) {
    const auto left = static_cast<size_t>(block_tokens_ - num_tokens_ % block_tokens_);
    const auto part = tokens.first(std::min(left, tokens.size()));
    tokens = tokens.subspan(part.size());
    num_tokens_ += static_cast<int64_t>(part.size());
    hash(part, form);
    if (part.size() < left) return;
    const std::array<uint8_t, 32> digest = state_.digest();
    std::copy_n(digest.begin(), 16, hashes_.emplace_back().bytes.begin());
  }
}

void BlockHasher::hash(std::span<const int32_t> tokens, Form form) {
  static_assert(std::endian::native == std::endian::little, "tokens are hashed as they lie in memory");
  if (!hash_forms_) return state_.update({reinterpret_cast<const uint8_t*>(tokens.data()), tokens.size_bytes()});
  for (const int32_t token : tokens) {
    std::array<uint8_t, 5> bytes{};
    std::memcpy(bytes.data(), &token, sizeof token);
    bytes[4] = static_cast<uint8_t>(form);
    state_.update(bytes);
  }
}

}  // namespace rtp_llm
