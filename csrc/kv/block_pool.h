// BlockPool: which blocks of one KV group are free, referenced, granted, quarantined or cached, and
// the only place that frees them. Ids and counts only; the bytes belong to a Buffer.
//
// A block is in exactly one state:
//   free         nobody knows it
//   referenced   count >= 1: sequences (and grants, by prefix hits) use it
//   granted      promised to a sender; messages may be written into it
//   quarantined  its grant is void, a late write may still come
//   gated        released, but a launched step or a transfer that may touch it has not ended
//   cached       count 0, known by its hash, evictable in least-recently-used order
//
// Release gate: a released block becomes free or cached only after the last step launched before
// the release has ended and all its pins (transfers that read or write it) are gone. Grants, forks
// and prefix hits go through the same gate.
//
// Thread rule: every method takes the one short mutex; the engine calls once a step, the transfer
// thread at grants.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "kv/block_hash.h"
#include "kv/prefix_cache.h"

namespace rtp_llm {

struct BlockCounts {
  int total = 0, free = 0, referenced = 0, granted = 0, quarantined = 0, gated = 0, cached = 0;
};

// What the running sequences may still need, for the watermark: the sum over them of min(blocks to
// max_tokens, 4), and their number. The engine publishes it once a step.
struct BlockDemand {
  int blocks = 0;
  int sequences = 0;
};

class BlockPool {
 public:
  BlockPool(int num_blocks, int block_tokens);

  int num_blocks() const { return num_blocks_; }
  int block_tokens() const { return block_tokens_; }

  // `count` blocks with one reference each, evicting cached blocks if needed; nullopt (and nothing
  // taken) if too few.
  std::optional<std::vector<int32_t>> allocate(int count);

  // References the longest cached run of `hashes` from the start, at most `max_blocks`; returns its
  // blocks.
  std::vector<int32_t> match(std::span<const BlockHash> hashes, int max_blocks);
  // How many leading hashes are cached, without referencing them.
  int count_cached(std::span<const BlockHash> hashes) const;

  // One more reference. REQUIRES: each block is referenced.
  void reference(std::span<const int32_t> blocks);
  // One reference less each; at zero the block passes the gate, then becomes cached (if it has a
  // hash) or free.
  void release(std::span<const int32_t> blocks);

  // A full block whose step has ended, or a received one that was verified. Returns the block that
  // the hash is known by: `block`, or an older one with the same content (then `block` stays
  // unhashed).
  int32_t insert(int32_t block, const BlockHash& hash);

  // --- Grants (receiver). Fresh blocks in state granted, if the watermark holds:
  // free + cached - granted - demand.blocks - count >= max(2% of the pool, one block a running
  // sequence).
  std::optional<std::vector<int32_t>> grant(int count);
  void granted_to_referenced(std::span<const int32_t> blocks);  // the sequence runs: one reference each
  void quarantine(std::span<const int32_t> blocks);             // granted -> quarantined
  void free_quarantined(std::span<const int32_t> blocks);       // no late write can come any more -> gate -> free
  void set_demand(BlockDemand demand);

  // --- Gate. Steps are numbered from 1; a synchronous device calls both around its forward.
  void step_launched(uint64_t step);
  void step_ended(uint64_t step);
  // A transfer that reads or writes the blocks is in flight. Counted; unpin must match.
  void pin(std::span<const int32_t> blocks);
  void unpin(std::span<const int32_t> blocks);

  BlockCounts counts() const;
  // Throws Error naming the first broken rule (states partition the pool, counts match, cache
  // agrees). For tests and idle checks.
  void check_integrity() const;

 private:
  int num_blocks_;
  int block_tokens_;
};

}  // namespace rtp_llm
