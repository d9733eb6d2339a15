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
// and prefix hits go through the same gate. One may pass before: a block that waits for a step only can be taken for
// the step being built, which the device runs behind it.
//
// Thread rule: every method takes the one short mutex; the engine calls once a step, the transfer
// thread at grants.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <initializer_list>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kv/block_hash.h"
#include "kv/prefix_cache.h"

namespace rtp_llm {

struct BlockCounts {
  int total = 0, free = 0, referenced = 0, granted = 0, quarantined = 0, gated = 0, cached = 0;
};

// What some sequences may still need, for the watermark: the sum over them of min(blocks to
// max_tokens, kMaxGrowth), and their number. The engine publishes that of its own once a step.
struct BlockDemand {
  static constexpr int kMaxGrowth = 4;
  int blocks = 0;
  int sequences = 0;
};

// The blocks of one grant, in order: the first `num_hits` are prefix hits, one reference each; the rest is fresh.
struct GrantedBlocks {
  std::vector<int32_t> blocks;
  int num_hits = 0;
};

class BlockPool {
 public:
  // Who hears of room, for as long as this lives; its end waits for a call in progress. REQUIRES: the pool outlives it,
  // and its end doesn't come from within a call.
  class RoomListener {
   public:
    RoomListener() = default;
    RoomListener(RoomListener&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_) {}
    RoomListener& operator=(RoomListener&& other) noexcept {
      std::swap(pool_, other.pool_);
      std::swap(id_, other.id_);
      return *this;
    }
    ~RoomListener();

   private:
    friend class BlockPool;
    RoomListener(BlockPool& pool, uint64_t id) : pool_(&pool), id_(id) {}
    BlockPool* pool_ = nullptr;
    uint64_t id_ = 0;
  };

  BlockPool(int num_blocks, int block_tokens);

  int num_blocks() const { return num_blocks_; }
  int block_tokens() const { return block_tokens_; }

  // Methods below that take blocks throw InvalidArgument, and change nothing, when an id is out of
  // range or a block is not in the state that they require.

  // `count` blocks with one reference each, evicting cached blocks if needed; nullopt (and nothing
  // taken) if too few.
  std::optional<std::vector<int32_t>> allocate(int count);
  // The same for the step being built: when free and cached blocks don't suffice, also those that wait for a launched
  // step and for no pin. REQUIRES: nothing but steps launched from now on touches the blocks.
  std::optional<std::vector<int32_t>> allocate_for_step(int count);
  // One such block, for a row: without memory of its own. nullopt: there is none.
  std::optional<int32_t> allocate_one_for_step();
  bool can_allocate_for_step(int count) const;

  // References the longest known run of `hashes` from the start, at most `max_blocks`; returns its
  // blocks. A hit may be cached, referenced by others, or gated: it is referenced then, and its next
  // release passes the gate anew.
  std::vector<int32_t> match(std::span<const BlockHash> hashes, int max_blocks);
  // How many leading hashes are known, without referencing them.
  int count_cached(std::span<const BlockHash> hashes) const;

  // One more reference. REQUIRES: each block is referenced.
  void reference(std::span<const int32_t> blocks);
  // One reference less each; at zero the block passes the gate, then becomes cached (if it has a
  // hash) or free. Of one release the last blocks are evicted first: a prefix is worth more than
  // what follows it. REQUIRES: each block is referenced.
  void release(std::span<const int32_t> blocks);

  // A full block whose step has ended, or a received one that was verified. Returns the block that
  // the hash is known by: `block`, or an older one with the same content (then `block` stays
  // unhashed). REQUIRES: the block is referenced or gated, and has no other hash.
  int32_t insert(int32_t block, const BlockHash& hash);

  // What the hashes are known by is wrong: no match or grant finds it from here on. Who refers to the blocks keeps
  // them; released they become free.
  void withdraw(std::span<const BlockHash> hashes);
  // The same for all that is known.
  void withdraw_all();

  // --- Grants (receiver). `num_blocks` blocks: the longest known run of `hashes` is referenced, the rest
  // is fresh, in state granted. `promised`: what the sequences of the grants that stand may need once they
  // run. The blocks of a grant are not free any more, so they count once. Given if afterwards
  //   free + cached - demand.blocks - promised.blocks
  //     >= max(2% of the pool, one block a sequence of demand and of promised);
  // else nothing is touched: no reference, no order of eviction, no listener.
  std::optional<GrantedBlocks> grant(std::span<const BlockHash> hashes, int num_blocks, BlockDemand promised);
  // The same without prefix hits.
  std::optional<std::vector<int32_t>> grant(int num_blocks, BlockDemand promised = {});
  // The sequence runs: one reference each. REQUIRES: granted, no pins (all receives have ended).
  void granted_to_referenced(std::span<const int32_t> blocks);
  void quarantine(std::span<const int32_t> blocks);        // granted -> quarantined
  void free_quarantined(std::span<const int32_t> blocks);  // no late write can come any more -> gate -> free
  void set_demand(BlockDemand demand);

  // --- Gate. Steps are numbered from 1 and launched in order; that a step has ended says that all
  // before it have. A synchronous device calls both around its forward.
  void step_launched(uint64_t step);
  void step_ended(uint64_t step);
  // A transfer that reads or writes the blocks is in flight. Counted; unpin must match. REQUIRES (pin):
  // each block is referenced or granted: a transfer starts only with blocks that somebody owns.
  void pin(std::span<const int32_t> blocks);
  void unpin(std::span<const int32_t> blocks);

  // What has happened to the prefix cache since; CacheLog::since.
  std::optional<std::vector<CacheEvent>> cache_events(uint64_t first) const;
  uint64_t last_cache_event() const;
  CacheSnapshot cache_snapshot() const;

  // Called whenever there may be more room than before: a block became free or cached, a grant ended, demand
  // sank. Under the pool's mutex: a listener must only note it (an atomic, an eventfd) and never call the pool.
  [[nodiscard]] RoomListener on_room(std::function<void()> listener);

  BlockCounts counts() const;
  // Throws Error naming the first broken rule (states partition the pool, counts match, cache
  // agrees). For tests and idle checks.
  void check_integrity() const;

 private:
  enum class State : uint8_t { kFree, kReferenced, kGranted, kQuarantined, kGated, kCached };
  static constexpr int kNumStates = 6;

  struct Block {
    State state = State::kFree;
    int32_t references = 0;
    int32_t pins = 0;
    uint64_t gate_step = 0;  // gated: the last step launched before the release
  };

  // All REQUIRE: mutex_ is held.
  int room() const { return count_of(State::kFree) + count_of(State::kCached); }
  int count_of(State state) const { return num_in_state_[static_cast<int>(state)]; }
  std::vector<int32_t> known_run(std::span<const BlockHash> hashes, int max_blocks) const;
  void refer_to_known(std::span<const int32_t> blocks);  // that have a hash
  void forget(int32_t block);                            // its hash
  void set_state(int32_t block, State state);
  int32_t take_one(State state);  // a free block, else the least recently released cached one
  std::vector<int32_t> take(int count, State state);
  // Blocks that wait for a step and for no pin, each once; those without a hash first.
  std::vector<int32_t> behind_steps() const;
  // One less each; throws, with nothing changed, if a count would go below zero.
  void decrement(std::span<const int32_t> blocks, int32_t Block::* count, const char* verb);
  void enter_gate(int32_t block);
  bool may_pass_gate(const Block& block) const { return block.pins == 0 && block.gate_step <= ended_step_; }
  void pass_gate(int32_t block);  // -> cached or free
  void require_state(std::span<const int32_t> blocks, std::initializer_list<State> allowed, const char* verb) const;
  void note_room() const {
    for (const auto& [id, listener] : room_listeners_) listener();
  }
  static const char* name_of(State state);

  const int num_blocks_;
  const int block_tokens_;

  mutable std::mutex mutex_;
  std::vector<Block> blocks_;
  std::array<int, kNumStates> num_in_state_{};
  std::vector<int32_t> free_;  // a stack
  PrefixCache cache_;
  BlockDemand demand_;
  uint64_t launched_step_ = 0;
  uint64_t ended_step_ = 0;
  // Gated blocks by gate step, ascending. An entry may be stale (the block was hit, or waits for a
  // pin): whoever pops it looks at the block.
  std::deque<std::pair<uint64_t, int32_t>> gate_;
  std::map<uint64_t, std::function<void()>> room_listeners_;  // by id, in the order of on_room
  uint64_t next_listener_ = 0;
};

}  // namespace rtp_llm
