// PrefixCache: which cached block holds which content, and the order of eviction. BlockPool owns
// one and calls it under its mutex; it knows no references and frees nothing.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <unordered_map>

#include "kv/block_hash.h"

namespace rtp_llm {

class PrefixCache {
 public:
  std::optional<int32_t> find(const BlockHash& hash) const;
  std::optional<BlockHash> hash_of(int32_t block) const;
  // False if the hash is known already (by another block). REQUIRES: the block has no hash.
  bool insert(int32_t block, const BlockHash& hash);
  void erase(int32_t block);  // forgets it; nothing if it isn't known
  size_t size() const { return by_hash_.size(); }

  // Eviction order: blocks that nobody references, least recently released first.
  void make_evictable(int32_t block);   // REQUIRES: it has a hash and is not evictable yet
  void make_referenced(int32_t block);  // nothing if it isn't evictable
  bool evictable(int32_t block) const { return place_.contains(block); }
  std::optional<int32_t> evict();  // forgets it and returns it
  size_t num_evictable() const { return order_.size(); }

  // Throws Error naming the first broken rule.
  void check_integrity() const;

 private:
  std::unordered_map<BlockHash, int32_t> by_hash_;
  std::unordered_map<int32_t, BlockHash> by_block_;
  std::list<int32_t> order_;
  std::unordered_map<int32_t, std::list<int32_t>::iterator> place_;
};

}  // namespace rtp_llm
