// Nonces: who may begin an endpoint. A nonce is drawn for one peer and good once, within kLifetime.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "handover/times.h"
#include "handover/types.h"

namespace rtp_llm {

// Thread rule: any thread.
class Nonces {
 public:
  static constexpr Seconds kLifetime = 30;

  // A nonce that admits `peer`; an earlier, unused one of this worker id, of any epoch, is void.
  uint64_t draw(const WorkerKey& peer, Seconds now);
  // Whom the nonce was drawn for, once.
  std::optional<WorkerKey> redeem(uint64_t nonce, Seconds now);
  size_t num_unused() const;

 private:
  struct Drawn {
    WorkerKey peer;
    Seconds at = 0;
  };
  mutable std::mutex mutex_;
  std::unordered_map<uint64_t, Drawn> drawn_;
};

}  // namespace rtp_llm
