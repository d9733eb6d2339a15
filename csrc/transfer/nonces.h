// Nonces: who may begin an endpoint. A nonce is drawn for one peer and good once.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "handover/types.h"

namespace rtp_llm {

// Thread rule: any thread.
class Nonces {
 public:
  // A nonce that admits `peer`; an earlier, unused one of this peer is void.
  uint64_t draw(const WorkerKey& peer);
  // Whom the nonce was drawn for, once.
  std::optional<WorkerKey> redeem(uint64_t nonce);

 private:
  std::mutex mutex_;
  std::unordered_map<uint64_t, WorkerKey> drawn_;
};

}  // namespace rtp_llm
