#include "kv/sha256_compress.h"

#include <random>

#include "check.h"

namespace rtp_llm {
namespace {

using State = std::array<uint32_t, 8>;

// Source: FIPS 180-4, the initial state and "abc" padded to one block.
TEST(the_standards_one_block_message_is_compressed_to_its_digest) {
  std::array<uint8_t, 64> block = {'a', 'b', 'c', 0x80};
  block[63] = 24;
  State state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  compress_sha256_portably(state, block.data());
  CHECK(state ==
        (State{0xba7816bf, 0x8f01cfea, 0x414140de, 0x5dae2223, 0xb00361a3, 0x96177a9c, 0xb410ff61, 0xf20015ad}));
}

TEST(instructions_compress_as_plain_code_does) {
  if (!has_sha256_instructions()) return;
  std::mt19937 random(1);
  for (int i = 0; i < 1000; ++i) {
    State plain, fast;
    std::array<uint8_t, 64> block;
    for (uint32_t& word : plain) word = random();
    for (uint8_t& byte : block) byte = static_cast<uint8_t>(random());
    fast = plain;
    compress_sha256_portably(plain, block.data());
    compress_sha256_by_instructions(fast, block.data());
    CHECK(plain == fast);
  }
}

}  // namespace
}  // namespace rtp_llm
