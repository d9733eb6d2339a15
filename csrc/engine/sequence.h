// Sequence: what a request is inside an engine: its tokens, its blocks, its slot, how far it is.
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
    kHeld,     // a sender that has sampled: blocks until release()
  };

  // `max_model_len` bounds prompt + output. REQUIRES: the spec passed check_spec.
  Sequence(SequenceSpec spec, Role role, BlockHasher hasher, int max_model_len);

  SequenceSpec spec;
  Role role;
  State state = State::kWaiting;
  uint64_t arrival = 0;  // order of add and join

  std::vector<int32_t> tokens;  // prompt, then output
  int num_prompt;
  int max_len;           // tokens at which it ends at the latest
  int num_computed = 0;  // tokens whose KV is stored in `blocks`
  int num_cached = 0;    // of them, prefix hits at the first admission
  bool admitted_before = false;

  std::vector<int32_t> blocks;  // one reference each
  BlockHasher hasher;           // over `tokens`
  int num_offered_blocks = 0;   // full blocks that the prefix cache was offered
  int num_clean_blocks = 0;     // blocks with no stale bytes: hits, received or zeroed ones

  int slot = -1;
  int num_bound_blocks = -1;  // entries of the slot's block table that are written; -1: the slot is not bound

  int len() const { return static_cast<int>(tokens.size()); }
  int num_output() const { return len() - num_prompt; }
  int num_uncomputed() const { return len() - num_computed; }
  // One output token is left to compute: a decode row.
  bool decoding() const { return num_uncomputed() == 1 && num_output() > 0; }
  // Blocks that hold the KV of `num_tokens` tokens.
  static int blocks_for(int num_tokens, int block_tokens) { return (num_tokens + block_tokens - 1) / block_tokens; }

  void append(int32_t token);
};

}  // namespace rtp_llm
