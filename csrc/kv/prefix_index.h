// PrefixIndex: which of many prefix caches hold which blocks, by hash. It is told what happens to each of them
// (CacheEvent) and answers how much of a prompt each holds from its start.
//
// An event costs one look-up; a question one look-up a block and a bit for each cache. Memory: 36 to 72 bytes a block
// that any cache holds (arrays grow by doubling), 4 to 16 for each cache that holds it, and a bit for every cache where
// more than kFew do; what a peak took stays taken.
//
// Thread rule: one thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kv/block_hash.h"
#include "kv/cache_log.h"

namespace rtp_llm {

// How many leading blocks of one prompt each cache holds.
class PrefixHits {
 public:
  // 0 for a cache that holds not even the first.
  int32_t blocks(int cache) const;
  const std::vector<int32_t>& by_cache() const { return blocks_; }  // empty where nobody holds the first block
  // The caches with most, at most `count`, most first; of equals those from the `from`-th on, so that a drawn `from`
  // chooses by lot.
  std::vector<int32_t> longest(int count, uint32_t from) const;

 private:
  friend class PrefixIndex;
  std::vector<int32_t> blocks_;  // by cache
  std::vector<int32_t> caches_;  // that hold something, the least first
};

class PrefixIndex {
 public:
  static constexpr int kMaxCaches = (1 << 16) - 1;

  PrefixIndex();

  // A number for a cache that holds nothing yet. Numbers of removed caches come again. Throws Error beyond kMaxCaches.
  int add_cache();
  // Methods below REQUIRE a number that add_cache() gave and that isn't removed.
  void remove_cache(int cache);
  // It holds these and nothing else.
  void reset(int cache, std::span<const BlockHash> hashes);
  // In order. What is stored is held and what is evicted isn't, whatever was before. Throws InvalidArgument, and
  // nothing is applied, for a kind that isn't known.
  void apply(int cache, std::span<const CacheEvent> events);

  PrefixHits find(std::span<const BlockHash> prompt) const;

  std::vector<BlockHash> held_by(int cache) const;
  size_t num_blocks() const { return num_blocks_; }  // that any cache holds
  size_t memory_bytes() const;

  // Throws Error naming the first broken rule. For tests.
  void check_integrity() const;

 private:
  static constexpr int32_t kNone = -1;
  static constexpr int kFew = 3;

  // A block that some cache holds. Of few caches their numbers lie here, of more a set of bits in sets_.
  struct Entry {
    BlockHash hash;
    int32_t next = kNone;  // of the same chain, or free
    int32_t set = kNone;
    uint16_t num_caches = 0;
    std::array<uint16_t, kFew> few{};
  };

  struct Cache {
    bool is_there = false;
    size_t size = 0;               // blocks that it holds
    std::vector<int32_t> entries;  // these, and some that it held before: looked through when they are the more
  };

  size_t chain_of(const BlockHash& hash) const { return std::hash<BlockHash>{}(hash) & (chains_.size() - 1); }
  int32_t find_entry(const BlockHash& hash) const;
  int32_t add_entry(const BlockHash& hash);
  void remove_entry(int32_t id);
  void grow_chains();

  void store(int cache, const BlockHash& hash);
  void evict(int cache, const BlockHash& hash);
  void clear(int cache);
  void forget_former(int cache);  // in Cache::entries

  bool holds(const Entry& entry, int cache) const;
  bool add_holder(Entry& entry, int cache);     // false: it was one
  bool remove_holder(Entry& entry, int cache);  // false: it was none
  void spread(Entry& entry);                    // few -> set
  void gather(Entry& entry);                    // set -> few
  void widen_sets();
  Cache& cache_at(int cache);
  const Cache& cache_at(int cache) const;

  std::vector<Entry> entries_;
  int32_t free_entry_ = kNone;
  size_t num_blocks_ = 0;
  std::vector<int32_t> chains_;  // first entry of each; a power of two of them
  std::vector<Cache> caches_;
  size_t words_ = 1;            // of a set: 64 caches each
  std::vector<uint64_t> sets_;  // words_ each
  std::vector<int32_t> free_sets_;
};

}  // namespace rtp_llm
