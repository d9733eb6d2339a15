#include "transfer/nonces.h"

#include "check.h"

namespace rtp_llm {
namespace {

const WorkerKey s{"s", 4};

TEST(a_nonce_admits_its_peer_once) {
  Nonces nonces;
  const uint64_t nonce = nonces.draw(s, 0);
  CHECK(nonces.redeem(nonce + 1, 1) == std::nullopt);
  CHECK(nonces.redeem(nonce, 1) == s);
  CHECK(nonces.redeem(nonce, 1) == std::nullopt);
}

TEST(an_unused_nonce_expires) {
  Nonces nonces;
  const uint64_t nonce = nonces.draw(s, 0);
  CHECK(nonces.redeem(nonce, Nonces::kLifetime) == std::nullopt);
  nonces.draw(s, 100);
  nonces.draw({"t", 1}, 100 + Nonces::kLifetime);
  CHECK_EQ(nonces.num_unused(), 1u);
}

TEST(a_sender_has_one_unused_nonce_whatever_its_epochs) {
  Nonces nonces;
  const uint64_t first = nonces.draw(s, 0);
  for (uint64_t epoch = 5; epoch < 100; ++epoch) nonces.draw({"s", epoch}, 0);
  CHECK_EQ(nonces.num_unused(), 1u);
  CHECK(nonces.redeem(first, 0) == std::nullopt);
}

}  // namespace
}  // namespace rtp_llm
