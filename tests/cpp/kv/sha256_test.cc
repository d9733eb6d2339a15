#include "kv/sha256.h"

#include "check.h"

namespace rtp_llm {
namespace {

std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// Source: NIST, FIPS 180-4 example values.
TEST(the_standards_example_messages_give_their_digests) {
  CHECK_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK_EQ(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
           "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK_EQ(sha256_hex("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn"
                      "hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu"),
           "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  CHECK_EQ(sha256_hex(std::string(1000000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(any_split_of_a_message_gives_the_same_digest) {
  std::string message;
  for (int i = 0; i < 200; ++i) message += static_cast<char>(i * 7);
  Sha256 whole;
  whole.update(bytes_of(message));
  for (size_t cut = 0; cut <= message.size(); ++cut) {
    Sha256 split;
    split.update(bytes_of(message).first(cut));
    split.update(bytes_of(message).subspan(cut));
    CHECK(split.digest() == whole.digest());
  }
}

TEST(a_digest_leaves_the_state_so_that_hashing_goes_on) {
  Sha256 hash;
  hash.update(bytes_of("ab"));
  (void)hash.digest();
  Sha256 fork = hash;
  hash.update(bytes_of("c"));
  CHECK_EQ(to_hex(hash.digest()), sha256_hex("abc"));
  fork.update(bytes_of("d"));
  CHECK_EQ(to_hex(fork.digest()), sha256_hex("abd"));
}

}  // namespace
}  // namespace rtp_llm
