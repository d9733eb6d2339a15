#include "kv/prefix_cache.h"

#include "tensor/check.h"

namespace rtp_llm {

std::optional<int32_t> PrefixCache::find(const BlockHash& hash) const {
  const auto found = by_hash_.find(hash);
  if (found == by_hash_.end()) return std::nullopt;
  return found->second;
}

std::optional<BlockHash> PrefixCache::hash_of(int32_t block) const {
  const auto found = by_block_.find(block);
  if (found == by_block_.end()) return std::nullopt;
  return found->second;
}

bool PrefixCache::insert(int32_t block, const BlockHash& hash) {
  check(!by_block_.contains(block), "block ", block, " has a hash already");
  if (!by_hash_.emplace(hash, block).second) return false;
  by_block_.emplace(block, hash);
  return true;
}

void PrefixCache::erase(int32_t block) {
  const auto found = by_block_.find(block);
  if (found == by_block_.end()) return;
  make_referenced(block);
  by_hash_.erase(found->second);
  by_block_.erase(found);
}

void PrefixCache::make_evictable(int32_t block) {
  check(by_block_.contains(block), "block ", block, " has no hash: it can't be evictable");
  check(!place_.contains(block), "block ", block, " is evictable already");
  place_.emplace(block, order_.insert(order_.end(), block));
}

void PrefixCache::make_referenced(int32_t block) {
  const auto found = place_.find(block);
  if (found == place_.end()) return;
  order_.erase(found->second);
  place_.erase(found);
}

std::optional<int32_t> PrefixCache::evict() {
  if (order_.empty()) return std::nullopt;
  const int32_t block = order_.front();
  erase(block);
  return block;
}

void PrefixCache::check_integrity() const {
  auto require = [](bool holds, const std::string& rule) {
    if (!holds) throw Error("prefix cache: " + rule);
  };
  require(by_hash_.size() == by_block_.size(), concat(by_hash_.size(), " hashes name ", by_block_.size(), " blocks"));
  for (const auto& [hash, block] : by_hash_) {
    const auto found = by_block_.find(block);
    require(found != by_block_.end() && found->second == hash,
            concat("hash ", hash.hex(), " names block ", block, ", which is not known by it"));
  }
  require(order_.size() == place_.size(), concat(order_.size(), " blocks in order, ", place_.size(), " have a place"));
  for (const auto& [block, place] : place_) {
    require(*place == block, concat("the place of block ", block, " holds block ", *place));
    require(by_block_.contains(block), concat("block ", block, " is evictable without a hash"));
  }
}

}  // namespace rtp_llm
