// Trace: when the parts of recent handovers happened, for the overlap proof and for debugging. A bounded ring.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "handover/times.h"
#include "handover/types.h"

namespace rtp_llm {

enum class TracePoint : uint8_t {
  kScheduled,       // S: owns all blocks of the prompt
  kLayersComputed,  // S: layers x tokens are stored (the engine thread's clock)
  kGranted,         // S: the grant came; R: it was given
  kPosted,          // S: a message left
  kSent,            // S: and its source is read no more
  kFirstToken,      // S: sampled (the engine thread's clock)
  kCommitSent,      // S
  kAccepted,        // R: a message's header came
  kReceived,        // R: and its bytes are in place, summed
  kCommitted,       // S: heard; R: decided, the sequence joins
};
std::string_view name_of(TracePoint point);  // "scheduled", "layers_computed", ...

struct TraceEntry {
  Seconds time = 0;  // monotonic
  RequestKey key;
  TracePoint point = TracePoint::kScheduled;
  int32_t first_layer = 0, num_layers = 0, first_token = 0, tokens = 0;
  uint64_t bytes = 0;
};

// Keeps the latest `capacity` entries; 0: none. Thread rule: one thread.
class Trace {
 public:
  explicit Trace(size_t capacity) : capacity_(capacity) {}

  void add(TraceEntry entry) {
    if (capacity_ == 0) return;
    if (entries_.size() < capacity_)
      entries_.push_back(entry);
    else
      entries_[next_] = entry;
    next_ = (next_ + 1) % capacity_;
  }

  // In the order of add(), the oldest first; all keys without `key`.
  std::vector<TraceEntry> entries(const std::optional<RequestKey>& key) const {
    std::vector<TraceEntry> found;
    const size_t start = entries_.size() < capacity_ ? 0 : next_;
    for (size_t i = 0; i < entries_.size(); ++i) {
      const TraceEntry& entry = entries_[(start + i) % entries_.size()];
      if (!key || entry.key == *key) found.push_back(entry);
    }
    return found;
  }

 private:
  size_t capacity_;
  size_t next_ = 0;
  std::vector<TraceEntry> entries_;
};

}  // namespace rtp_llm
