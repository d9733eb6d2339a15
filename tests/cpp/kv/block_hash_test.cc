#include "kv/block_hash.h"

#include <numeric>

#include "check.h"

namespace rtp_llm {
namespace {

std::vector<int32_t> tokens_to(int count) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), -3);  // negative and multi-byte ids too
  for (int32_t& token : tokens) token *= 70000;
  return tokens;
}

std::vector<BlockHash> hashes_of(const std::vector<int32_t>& tokens, int block_tokens, const std::string& salt = "s",
                                 bool hash_forms = false, Form form = Form::kPrefill) {
  BlockHasher hasher(salt, block_tokens, hash_forms);
  hasher.append(tokens, form);
  return hasher.hashes();
}

TEST(a_hash_is_the_first_16_bytes_of_sha256_over_salt_and_tokens_little_endian) {
  const std::string message = std::string("salt") + std::string("\x01\x00\x00\x00\xff\xff\xff\xff", 8);
  CHECK_EQ(hashes_of({1, -1}, 2, "salt")[0].hex(), sha256_hex(message).substr(0, 32));
}

TEST(with_forms_each_token_is_followed_by_its_form_byte) {
  const std::string message = std::string("salt") + std::string("\x01\x00\x00\x00\x01\x02\x00\x00\x00\x01", 10);
  CHECK_EQ(hashes_of({1, 2}, 2, "salt", true, Form::kDecode)[0].hex(), sha256_hex(message).substr(0, 32));
  CHECK(hashes_of({1, 2}, 2, "salt", true, Form::kPrefill) != hashes_of({1, 2}, 2, "salt", true, Form::kDecode));
  CHECK(hashes_of({1, 2}, 2, "salt", false, Form::kPrefill) == hashes_of({1, 2}, 2, "salt", false, Form::kDecode));
}

TEST(only_full_blocks_have_a_hash) {
  CHECK_EQ(hashes_of(tokens_to(31), 16).size(), 1);
  CHECK_EQ(hashes_of(tokens_to(32), 16).size(), 2);
  CHECK_EQ(hashes_of(tokens_to(15), 16).size(), 0);
}

TEST(chunks_give_the_hashes_of_the_whole) {
  const std::vector<int32_t> tokens = tokens_to(100);
  for (int chunk : {1, 7, 16, 33}) {
    BlockHasher hasher("s", 16, false);
    for (size_t i = 0; i < tokens.size(); i += chunk)
      hasher.append(std::span(tokens).subspan(i, std::min<size_t>(chunk, tokens.size() - i)), Form::kPrefill);
    CHECK(hasher.hashes() == hashes_of(tokens, 16));
    CHECK_EQ(hasher.num_tokens(), 100);
  }
}

TEST(pools_of_different_block_size_match_at_common_borders) {
  const auto by_8 = hashes_of(tokens_to(64), 8), by_16 = hashes_of(tokens_to(64), 16);
  for (size_t i = 0; i < by_16.size(); ++i) CHECK(by_16[i] == by_8[2 * i + 1]);
}

TEST(one_changed_token_changes_its_block_and_all_later_ones) {
  std::vector<int32_t> tokens = tokens_to(64);
  const auto before = hashes_of(tokens, 16);
  tokens[20] += 1;
  const auto after = hashes_of(tokens, 16);
  CHECK(before[0] == after[0]);
  for (int i = 1; i < 4; ++i) CHECK(before[i] != after[i]);
}

TEST(a_fork_goes_on_from_the_same_state) {
  BlockHasher hasher("s", 2, false);
  hasher.append(std::vector<int32_t>{1, 2, 3}, Form::kPrefill);
  BlockHasher fork = hasher;
  hasher.append(std::vector<int32_t>{4}, Form::kPrefill);
  fork.append(std::vector<int32_t>{5}, Form::kPrefill);
  CHECK(hasher.hashes() == hashes_of({1, 2, 3, 4}, 2));
  CHECK(fork.hashes() == hashes_of({1, 2, 3, 5}, 2));
}

TEST(a_salt_is_its_fields_each_behind_its_length_in_8_bytes_little_endian) {
  const auto bytes = [](const char (&text)[9]) { return std::string(text, 8); };
  CHECK_EQ(block_hash_salt("ab", std::string(258, 'x'), "c"), bytes("\2\0\0\0\0\0\0\0") + "ab" +
                                                                  bytes("\2\1\0\0\0\0\0\0") + std::string(258, 'x') +
                                                                  bytes("\1\0\0\0\0\0\0\0") + "c");
}

TEST(salts_join_unambiguously) {
  CHECK(block_hash_salt("ab", "c") != block_hash_salt("a", "bc"));
  CHECK(block_hash_salt("a", "", "b") != block_hash_salt("a", "b", ""));
  CHECK(hashes_of({1, 2}, 2, block_hash_salt("a")) != hashes_of({1, 2}, 2, block_hash_salt("b")));
}

}  // namespace
}  // namespace rtp_llm
