// GrantPool: what a Receiver needs of an engine's blocks and slots. The transfer thread implements it over BlockPool
// and SlotPool, tests by a few sets.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "handover/sequence_spec.h"
#include "kv/block_hash.h"

namespace rtp_llm {

class GrantPool {
 public:
  // What a Reserve asks for, worked out once: one that waits is tried again at each step of the engine.
  struct Want {
    std::shared_ptr<const SequenceSpec> spec;
    int32_t num_blocks = 0;         // of all tokens of the spec (prompt and output so far)
    int32_t growth = 0;             // blocks that the sequence may take soon beyond them
    std::vector<BlockHash> hashes;  // of the full ones; none: prefixes are not cached
  };
  struct Reservation {
    std::vector<int32_t> blocks;  // of all tokens of the spec, in order
    int32_t prefix_blocks = 0;    // the first ones: prefix hits, one reference each; the rest is granted and zeroed
    int32_t growth = 0;           // kept free until the sequence runs
    uint64_t router_epoch = 0;    // whose sequence it is: one slot is taken for it
  };

  virtual ~GrantPool() = default;
  virtual Want want(std::shared_ptr<const SequenceSpec> spec) const { return {std::move(spec), 0, 0, {}}; }
  // Takes a slot, references prefix hits and grants the rest if a slot is free and the watermark holds; nullopt,
  // nothing taken, if not.
  virtual std::optional<Reservation> grant(const Want& want) = 0;
  // The sequence runs: granted blocks become referenced, one reference each. The slot is the sequence's.
  virtual void join(const Reservation& reservation) = 0;
  // The grant is void: slot and prefix hits are given back at once, granted blocks are quarantined.
  virtual void quarantine(const Reservation& reservation) = 0;
  // Nothing can write into the granted blocks any more: they are free.
  virtual void free_quarantined(const Reservation& reservation) = 0;
};

}  // namespace rtp_llm
