// GrantPool: where a receiver's blocks come from. The transfer room implements it over BlockPool,
// tests by a few sets.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "handover/sequence_spec.h"

namespace rtp_llm {

class GrantPool {
 public:
  struct Room {
    std::vector<int32_t> blocks;  // of all tokens of the spec (prompt and output so far), in order
    int32_t prefix_blocks = 0;    // the first ones: prefix hits, one reference each; the rest is granted and zeroed
    int32_t growth = 0;           // blocks that the sequence may still take soon: kept free until it runs
  };

  virtual ~GrantPool() = default;
  // References prefix hits and grants the rest if the watermark holds; nullopt, nothing taken, if not.
  virtual std::optional<Room> grant(const SequenceSpec& spec) = 0;
  // The sequence runs: granted blocks become referenced, one reference each.
  virtual void join(const Room& room) = 0;
  // The grant is void: prefix hits are released at once, granted blocks are quarantined.
  virtual void quarantine(const Room& room) = 0;
  // Nothing can write into the granted blocks any more: they are free.
  virtual void free_quarantined(const Room& room) = 0;
};

}  // namespace rtp_llm
