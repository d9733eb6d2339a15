// AttemptLedger: the highest attempt of each (router_epoch, request, choice) that this worker has
// heard of, as sender and as receiver. One per worker, shared by both machines.
#pragma once

#include <cstdint>
#include <deque>
#include <unordered_map>
#include <utility>

#include "handover/times.h"
#include "handover/types.h"

namespace rtp_llm {

class AttemptLedger {
 public:
  explicit AttemptLedger(Seconds memory) : memory_(memory) {}

  // Notes an attempt that a Submit, Reserve, Cancel or Fence names. True if it is higher than all
  // before: lower ones are over.
  bool raise(const RequestKey& key, Seconds now);
  // Whether a higher attempt than key's is known.
  bool is_stale(const RequestKey& key) const;
  // Forgets what nobody named for `memory` seconds.
  void forget(Seconds now);
  size_t size() const { return highest_.size(); }

 private:
  struct Entry {
    uint32_t attempt = 0;
    Seconds named_at = 0;
  };
  Seconds memory_;
  std::unordered_map<RequestKey, Entry> highest_;  // by key.without_attempt()
  std::deque<std::pair<Seconds, RequestKey>> order_;
};

}  // namespace rtp_llm
