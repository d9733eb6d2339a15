// PrefixCache: which cached block holds which content, and the order of eviction. BlockPool owns
// one and calls it under its mutex; it knows no references and frees nothing.
//
// What enters and leaves is noted in a log, for whoever follows the cache from outside (docs/kv-cache.md).
//
// All memory is taken at construction: entries lie in an array by block id, linked into chains by hash and into the
// ring of eviction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "kv/block_hash.h"
#include "kv/cache_log.h"

namespace rtp_llm {

class PrefixCache {
 public:
  // Of blocks 0 to num_blocks - 1; methods REQUIRE such ids.
  explicit PrefixCache(int num_blocks);

  std::optional<int32_t> find(const BlockHash& hash) const;
  std::optional<BlockHash> hash_of(int32_t block) const;
  // False if the hash is known already (by another block). REQUIRES: the block has no hash.
  bool insert(int32_t block, const BlockHash& hash);
  void erase(int32_t block);  // forgets it; nothing if it isn't known
  size_t size() const { return size_; }

  // Eviction order: blocks that nobody references, least recently released first.
  void make_evictable(int32_t block);   // REQUIRES: it has a hash and is not evictable yet
  void make_referenced(int32_t block);  // nothing if it isn't evictable
  bool evictable(int32_t block) const { return entries_[block].newer != kNone; }
  std::optional<int32_t> evict();  // forgets it and returns it
  size_t num_evictable() const { return num_evictable_; }

  const CacheLog& log() const { return log_; }
  CacheSnapshot snapshot() const;

  // Throws Error naming the first broken rule.
  void check_integrity() const;

 private:
  static constexpr int32_t kNone = -1;
  static constexpr size_t kLeastEvents = 1024;  // in the log

  struct Entry {
    BlockHash hash;
    bool known = false;                    // it has a hash
    int32_t next = kNone;                  // known: of the same chain
    int32_t older = kNone, newer = kNone;  // evictable: its neighbours in the ring
  };

  size_t chain_of(const BlockHash& hash) const;
  int32_t ring() const { return static_cast<int32_t>(entries_.size()) - 1; }
  void link(int32_t older, int32_t newer);

  std::vector<Entry> entries_;   // by block; the last one closes the ring: newer is the first to be evicted
  std::vector<int32_t> chains_;  // first block of each; a power of two of them, at least one a block
  size_t size_ = 0;
  size_t num_evictable_ = 0;
  CacheLog log_;  // as long as the cache has blocks: who has missed more is told less by a snapshot
};

}  // namespace rtp_llm
