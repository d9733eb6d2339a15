#include "transfer/nonces.h"

#include <sys/random.h>

#include <cerrno>
#include <cstring>

#include "tensor/check.h"

namespace rtp_llm {
namespace {

uint64_t random_bits() {
  uint64_t bits = 0;
  while (bits == 0)
    check(getrandom(&bits, sizeof bits, 0) == ssize_t{sizeof bits}, "getrandom: ", std::strerror(errno));
  return bits;
}

}  // namespace

uint64_t Nonces::draw(const WorkerKey& peer, Seconds now) {
  const uint64_t nonce = random_bits();
  std::lock_guard lock(mutex_);
  std::erase_if(
      drawn_, [&](const auto& entry) { return entry.second.peer.id == peer.id || entry.second.at + kLifetime <= now; });
  drawn_[nonce] = {peer, now};
  return nonce;
}

std::optional<WorkerKey> Nonces::redeem(uint64_t nonce, Seconds now) {
  std::lock_guard lock(mutex_);
  const auto found = drawn_.find(nonce);
  if (found == drawn_.end()) return std::nullopt;
  const Drawn drawn = found->second;
  drawn_.erase(found);
  if (drawn.at + kLifetime <= now) return std::nullopt;
  return drawn.peer;
}

size_t Nonces::num_unused() const {
  std::lock_guard lock(mutex_);
  return drawn_.size();
}

}  // namespace rtp_llm
