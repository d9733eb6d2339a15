// Sequence: what a request is inside an engine: its tokens, its blocks, its slot, how far it is.
//
// A step may be launched before the one before it has ended, so a sequence has two clocks: `num_launched` says what
// launched steps compute and is what the scheduler plans by, `num_computed` says what steps that have ended have
// computed. Tokens that launched steps sample and nobody has read yet are counted by `num_pending`.
//
// Owner: Engine. After Engine::add only the engine thread touches it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "handover/sequence_spec.h"
#include "kv/block_hash.h"

namespace rtp_llm {

struct Sequence {
  enum class State : uint8_t {
    kWaiting,  // no slot; blocks only if joined
    kRunning,  // a slot, and blocks for all its tokens
    kHeld,     // a sender that has sampled or was cancelled: blocks until release()
    kEnding,   // over, without slot and blocks; launched steps still have rows of it
  };

  // `max_model_len` bounds prompt + output. REQUIRES: the spec passed check_spec.
  Sequence(SequenceSpec spec, Role role, BlockHasher hasher, int max_model_len);

  SequenceSpec spec;
  Role role;
  State state = State::kWaiting;
  uint64_t arrival = 0;  // order of add and join

  std::vector<int32_t> tokens;  // prompt, then output
  int num_prompt;
  int max_len;              // tokens at which it ends at the latest
  int num_launched = 0;     // tokens whose KV is stored in `blocks` when all launched steps have ended
  int num_computed = 0;     // tokens whose KV is stored in `blocks`
  int num_pending = 0;      // tokens that launched steps sample, behind `tokens`
  int steps_in_flight = 0;  // launched steps with rows of it that are not published
  int num_preemptions = 0;  // rows that were launched before the last one are in no block of it
  int num_cached = 0;       // of them, prefix hits at the first admission
  bool admitted_before = false;
  double added_at = 0, planned_at = 0;  // when it came, and when its first step was planned; transfer/clock.h

  // Of a solo sequence's first step.
  enum class Notice : uint8_t { kNone, kSaid, kOver };
  Notice notice = Notice::kNone;

  std::vector<int32_t> blocks;  // one reference each; its memory is taken at construction
  BlockHasher hasher;           // over `tokens`
  int num_offered_blocks = 0;   // full blocks that the prefix cache was offered
  int num_clean_blocks = 0;     // blocks with no stale bytes: hits, received or zeroed ones

  bool holds_slot = false;    // of the engine's SlotPool: from its admission or grant to its end, preempted or not
  int slot = -1;              // on the device, while it runs
  int num_bound_blocks = -1;  // entries of the slot's block table that are written; -1: the slot is not bound

  int len() const { return static_cast<int>(tokens.size()); }
  int num_output() const { return len() - num_prompt; }
  // With the tokens that launched steps sample.
  int planned_len() const { return len() + num_pending; }
  int num_unlaunched() const { return planned_len() - num_launched; }
  // One output token is left to compute: a decode row.
  bool decoding() const { return num_unlaunched() == 1 && planned_len() > num_prompt; }
  // Its rows are in steps of its own.
  bool solo() const {
    return spec.solo && planned_len() < num_prompt + static_cast<int>(spec.output.size()) + kSoloTokens;
  }
  // Launched steps sample its last token, if it doesn't end before: no more rows.
  bool launched_to_its_end() const { return planned_len() >= max_len; }

  static constexpr int kSoloTokens = 2;  // one of a prefill and one of a decode

  void append(int32_t token);
};

}  // namespace rtp_llm
