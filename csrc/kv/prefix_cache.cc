#include "kv/prefix_cache.h"

#include <algorithm>
#include <bit>

#include "tensor/check.h"

namespace rtp_llm {

PrefixCache::PrefixCache(int num_blocks)
    : entries_(static_cast<size_t>(num_blocks) + 1),
      chains_(std::bit_ceil(static_cast<size_t>(num_blocks) + 1), kNone),
      log_(std::max(static_cast<size_t>(num_blocks), kLeastEvents)) {
  link(ring(), ring());
}

// Hashes are evenly spread: any of their bits choose a chain.
size_t PrefixCache::chain_of(const BlockHash& hash) const {
  return std::hash<BlockHash>{}(hash) & (chains_.size() - 1);
}

void PrefixCache::link(int32_t older, int32_t newer) {
  entries_[older].newer = newer;
  entries_[newer].older = older;
}

std::optional<int32_t> PrefixCache::find(const BlockHash& hash) const {
  for (int32_t block = chains_[chain_of(hash)]; block != kNone; block = entries_[block].next)
    if (entries_[block].hash == hash) return block;
  return std::nullopt;
}

std::optional<BlockHash> PrefixCache::hash_of(int32_t block) const {
  if (!entries_[block].known) return std::nullopt;
  return entries_[block].hash;
}

bool PrefixCache::insert(int32_t block, const BlockHash& hash) {
  Entry& entry = entries_[block];
  check(!entry.known, "block ", block, " has a hash already");
  if (find(hash)) return false;
  int32_t& first = chains_[chain_of(hash)];
  entry = {.hash = hash, .known = true, .next = first};
  first = block;
  ++size_;
  log_.append(CacheEvent::Kind::kStored, hash);
  return true;
}

void PrefixCache::erase(int32_t block) {
  Entry& entry = entries_[block];
  if (!entry.known) return;
  make_referenced(block);
  int32_t* at = &chains_[chain_of(entry.hash)];
  while (*at != block) at = &entries_[*at].next;
  *at = entry.next;
  log_.append(CacheEvent::Kind::kEvicted, entry.hash);
  entry = {};
  --size_;
}

void PrefixCache::make_evictable(int32_t block) {
  check(entries_[block].known, "block ", block, " has no hash: it can't be evictable");
  check(!evictable(block), "block ", block, " is evictable already");
  link(entries_[ring()].older, block);
  link(block, ring());
  ++num_evictable_;
}

void PrefixCache::make_referenced(int32_t block) {
  Entry& entry = entries_[block];
  if (!evictable(block)) return;
  link(entry.older, entry.newer);
  entry.older = entry.newer = kNone;
  --num_evictable_;
}

std::optional<int32_t> PrefixCache::evict() {
  if (num_evictable_ == 0) return std::nullopt;
  const int32_t block = entries_[ring()].newer;
  erase(block);
  return block;
}

CacheSnapshot PrefixCache::snapshot() const {
  CacheSnapshot snapshot{.number = log_.last(), .hashes = {}};
  snapshot.hashes.reserve(size_);
  for (const Entry& entry : entries_)
    if (entry.known) snapshot.hashes.push_back(entry.hash);
  return snapshot;
}

void PrefixCache::check_integrity() const {
  auto require = [](bool holds, const std::string& rule) {
    if (!holds) throw Error("prefix cache: " + rule);
  };
  size_t chained = 0;
  for (size_t chain = 0; chain < chains_.size(); ++chain) {
    for (int32_t block = chains_[chain]; block != kNone; block = entries_[block].next, ++chained) {
      const Entry& entry = entries_[block];
      require(chained < entries_.size() && entry.known, concat("block ", block, " is in a chain without a hash"));
      require(chain_of(entry.hash) == chain,
              concat("hash ", entry.hash.hex(), " of block ", block, " is in another chain than its own"));
      require(find(entry.hash) == block, concat("hash ", entry.hash.hex(), " names two blocks, one is ", block));
    }
  }
  size_t known = 0;
  for (const Entry& entry : entries_) known += entry.known;
  require(chained == size_ && known == size_,
          concat(chained, " hashes in chains, ", known, " blocks have one, ", size_, " are counted"));
  size_t in_ring = 0;
  for (int32_t block = entries_[ring()].newer; block != ring(); block = entries_[block].newer, ++in_ring) {
    require(in_ring < num_evictable_, concat("more than ", num_evictable_, " blocks are evictable"));
    require(entries_[block].known, concat("block ", block, " is evictable without a hash"));
    require(entries_[entries_[block].newer].older == block,
            concat("block ", block, " is not its successor's predecessor"));
  }
  require(in_ring == num_evictable_, concat(in_ring, " blocks are evictable, ", num_evictable_, " are counted"));
}

}  // namespace rtp_llm
