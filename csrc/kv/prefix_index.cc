#include "kv/prefix_index.h"

#include <algorithm>
#include <bit>

#include "tensor/check.h"

namespace rtp_llm {
namespace {

constexpr size_t kBits = 64;
constexpr size_t kFirstChains = 1024;

bool test_bit(std::span<const uint64_t> words, size_t bit) { return words[bit / kBits] >> (bit % kBits) & 1; }
void set_bit(std::span<uint64_t> words, size_t bit) { words[bit / kBits] |= uint64_t{1} << (bit % kBits); }
void clear_bit(std::span<uint64_t> words, size_t bit) { words[bit / kBits] &= ~(uint64_t{1} << (bit % kBits)); }

// Calls each(bit) for the bits that are set, in ascending order.
template <class Each>
void for_each_bit(std::span<const uint64_t> words, Each each) {
  for (size_t i = 0; i < words.size(); ++i)
    for (uint64_t word = words[i]; word != 0; word &= word - 1)
      each(static_cast<int32_t>(i * kBits + static_cast<size_t>(std::countr_zero(word))));
}

}  // namespace

// ---- PrefixHits

int32_t PrefixHits::blocks(int cache) const {
  const auto at = static_cast<size_t>(cache);
  return at < blocks_.size() ? blocks_[at] : 0;
}

std::vector<int32_t> PrefixHits::longest(int count, uint32_t from) const {
  std::vector<int32_t> found;
  size_t end = caches_.size();
  while (end > 0 && static_cast<int>(found.size()) < count) {
    size_t begin = end - 1;
    while (begin > 0 && blocks_[caches_[begin - 1]] == blocks_[caches_[begin]]) --begin;
    const size_t equals = end - begin;
    const size_t taken = std::min(equals, static_cast<size_t>(count) - found.size());
    for (size_t i = 0; i < taken; ++i) found.push_back(caches_[begin + (from + i) % equals]);
    end = begin;
  }
  return found;
}

// ---- Caches

PrefixIndex::PrefixIndex() : chains_(kFirstChains, kNone) {}

int PrefixIndex::add_cache() {
  auto free = std::ranges::find(caches_, false, &Cache::is_there);
  if (free == caches_.end()) {
    if (caches_.size() == kMaxCaches) throw Error(concat("a prefix index holds ", kMaxCaches, " caches"));
    caches_.emplace_back();
    free = caches_.end() - 1;
    if (caches_.size() > words_ * kBits) widen_sets();
  }
  free->is_there = true;
  return static_cast<int>(free - caches_.begin());
}

void PrefixIndex::remove_cache(int cache) {
  clear(cache);
  cache_at(cache) = {};
}

void PrefixIndex::reset(int cache, std::span<const BlockHash> hashes) {
  clear(cache);
  for (const BlockHash& hash : hashes) store(cache, hash);
}

void PrefixIndex::apply(int cache, std::span<const CacheEvent> events) {
  cache_at(cache);
  for (const CacheEvent& event : events)
    check(event.kind >= CacheEvent::Kind::kStored && event.kind <= CacheEvent::Kind::kCleared, "cache event of kind ",
          static_cast<int>(event.kind), ", 1 to 3 are known");
  for (const CacheEvent& event : events) {
    switch (event.kind) {
      case CacheEvent::Kind::kStored: store(cache, event.hash); break;
      case CacheEvent::Kind::kEvicted: evict(cache, event.hash); break;
      case CacheEvent::Kind::kCleared: clear(cache); break;
    }
  }
}

// ---- Questions

// `left` are the caches that hold all blocks so far: each block takes those out that lack it.
PrefixHits PrefixIndex::find(std::span<const BlockHash> prompt) const {
  PrefixHits hits;
  if (prompt.empty()) return hits;
  const int32_t first = find_entry(prompt[0]);
  if (first == kNone) return hits;
  hits.blocks_.resize(caches_.size());
  std::vector<uint64_t> left(words_), next(words_);
  const auto holders_of = [&](int32_t id, std::span<uint64_t> into) {
    const Entry& entry = entries_[id];
    if (entry.set != kNone) {
      std::copy_n(sets_.begin() + static_cast<ptrdiff_t>(entry.set * words_), words_, into.begin());
    } else {
      std::ranges::fill(into, 0);
      for (int i = 0; i < entry.num_caches; ++i) set_bit(into, entry.few[i]);
    }
  };
  const auto end_at = [&](std::span<const uint64_t> caches, size_t blocks) {
    for_each_bit(caches, [&](int32_t cache) {
      hits.blocks_[cache] = static_cast<int32_t>(blocks);
      hits.caches_.push_back(cache);
    });
  };
  holders_of(first, left);
  size_t blocks = 1;
  for (; blocks < prompt.size(); ++blocks) {
    const int32_t id = find_entry(prompt[blocks]);
    if (id == kNone) break;
    holders_of(id, next);
    uint64_t any = 0, gone = 0;
    for (size_t i = 0; i < words_; ++i) {
      next[i] &= left[i];
      left[i] &= ~next[i];
      any |= next[i];
      gone |= left[i];
    }
    if (gone != 0) end_at(left, blocks);
    left.swap(next);
    if (any == 0) return hits;
  }
  end_at(left, blocks);
  return hits;
}

std::vector<BlockHash> PrefixIndex::held_by(int cache) const {
  std::vector<int32_t> held = cache_at(cache).entries;
  std::ranges::sort(held);
  const auto repeated = std::ranges::unique(held);
  held.erase(repeated.begin(), repeated.end());
  std::vector<BlockHash> hashes;
  hashes.reserve(cache_at(cache).size);
  for (int32_t id : held)
    if (holds(entries_[id], cache)) hashes.push_back(entries_[id].hash);
  return hashes;
}

size_t PrefixIndex::memory_bytes() const {
  const auto bytes_of = [](const auto& array) { return array.capacity() * sizeof(array[0]); };
  size_t bytes = bytes_of(entries_) + bytes_of(chains_) + bytes_of(caches_) + bytes_of(sets_) + bytes_of(free_sets_);
  for (const Cache& cache : caches_) bytes += bytes_of(cache.entries);
  return bytes;
}

void PrefixIndex::check_integrity() const {
  const auto require = [](bool holds, const auto&... parts) {
    if (!holds) throw Error(concat("prefix index: ", parts...));
  };
  size_t chained = 0, holders = 0;
  for (size_t chain = 0; chain < chains_.size(); ++chain) {
    for (int32_t id = chains_[chain]; id != kNone; id = entries_[id].next, ++chained) {
      const Entry& entry = entries_[id];
      require(chained <= num_blocks_, "more than ", num_blocks_, " blocks are in chains");
      require(find_entry(entry.hash) == id && chain_of(entry.hash) == chain, "hash ", entry.hash.hex(), " isn't found");
      require(entry.num_caches > 0, "hash ", entry.hash.hex(), " is held by nobody");
      require((entry.set == kNone) == (entry.num_caches <= kFew), "hash ", entry.hash.hex(), " of ", entry.num_caches,
              " caches is kept wrongly");
      int counted = 0;
      for (size_t cache = 0; cache < caches_.size(); ++cache)
        counted += caches_[cache].is_there && holds(entry, static_cast<int>(cache));
      require(counted == entry.num_caches, "hash ", entry.hash.hex(), " has ", counted, " holders, ", entry.num_caches,
              " are counted");
      holders += static_cast<size_t>(counted);
    }
  }
  require(chained == num_blocks_, chained, " blocks are in chains, ", num_blocks_, " are counted");
  size_t sizes = 0;
  for (size_t cache = 0; cache < caches_.size(); ++cache) {
    if (!caches_[cache].is_there) continue;
    sizes += caches_[cache].size;
    const size_t held = held_by(static_cast<int>(cache)).size();
    require(held == caches_[cache].size, "cache ", cache, " lists ", held, " blocks, ", caches_[cache].size,
            " are counted");
  }
  require(sizes == holders, "caches hold ", sizes, " blocks, the blocks have ", holders, " holders");
}

PrefixIndex::Cache& PrefixIndex::cache_at(int cache) {
  return const_cast<Cache&>(static_cast<const PrefixIndex*>(this)->cache_at(cache));
}

const PrefixIndex::Cache& PrefixIndex::cache_at(int cache) const {
  check(cache >= 0 && static_cast<size_t>(cache) < caches_.size() && caches_[cache].is_there, "there is no cache ",
        cache);
  return caches_[cache];
}

// ---- What one cache holds

void PrefixIndex::store(int cache, const BlockHash& hash) {
  int32_t id = find_entry(hash);
  if (id == kNone) id = add_entry(hash);
  if (!add_holder(entries_[id], cache)) return;
  Cache& held = cache_at(cache);
  held.entries.push_back(id);
  if (++held.size + 64 < held.entries.size() / 2) forget_former(cache);
}

void PrefixIndex::evict(int cache, const BlockHash& hash) {
  const int32_t id = find_entry(hash);
  if (id == kNone || !remove_holder(entries_[id], cache)) return;
  --cache_at(cache).size;
  if (entries_[id].num_caches == 0) remove_entry(id);
}

void PrefixIndex::clear(int cache) {
  Cache& held = cache_at(cache);
  for (int32_t id : held.entries) {
    if (!remove_holder(entries_[id], cache)) continue;  // a former one, or named twice
    if (entries_[id].num_caches == 0) remove_entry(id);
  }
  held.entries.clear();
  held.size = 0;
}

void PrefixIndex::forget_former(int cache) {
  std::vector<int32_t>& listed = cache_at(cache).entries;
  std::ranges::sort(listed);
  const auto repeated = std::ranges::unique(listed);
  listed.erase(repeated.begin(), repeated.end());
  std::erase_if(listed, [&](int32_t id) { return !holds(entries_[id], cache); });
}

// ---- The holders of one block

bool PrefixIndex::holds(const Entry& entry, int cache) const {
  if (entry.set != kNone) return test_bit(std::span(sets_).subspan(entry.set * words_, words_), cache);
  const auto end = entry.few.begin() + entry.num_caches;
  return std::find(entry.few.begin(), end, cache) != end;
}

bool PrefixIndex::add_holder(Entry& entry, int cache) {
  if (holds(entry, cache)) return false;
  if (entry.num_caches == kFew) spread(entry);
  if (entry.set != kNone) {
    set_bit(std::span(sets_).subspan(entry.set * words_, words_), cache);
  } else {
    entry.few[entry.num_caches] = static_cast<uint16_t>(cache);
  }
  ++entry.num_caches;
  return true;
}

bool PrefixIndex::remove_holder(Entry& entry, int cache) {
  if (!holds(entry, cache)) return false;
  --entry.num_caches;
  if (entry.set == kNone) {
    *std::find(entry.few.begin(), entry.few.end(), cache) = entry.few[entry.num_caches];
    return true;
  }
  clear_bit(std::span(sets_).subspan(entry.set * words_, words_), cache);
  if (entry.num_caches == kFew) gather(entry);
  return true;
}

void PrefixIndex::spread(Entry& entry) {
  if (free_sets_.empty()) {
    free_sets_.push_back(static_cast<int32_t>(sets_.size() / words_));
    sets_.resize(sets_.size() + words_);
  }
  entry.set = free_sets_.back();
  free_sets_.pop_back();
  for (uint16_t cache : entry.few) set_bit(std::span(sets_).subspan(entry.set * words_, words_), cache);
}

void PrefixIndex::gather(Entry& entry) {
  const std::span<uint64_t> set = std::span(sets_).subspan(entry.set * words_, words_);
  int count = 0;
  for_each_bit(set, [&](int32_t cache) { entry.few[count++] = static_cast<uint16_t>(cache); });
  std::ranges::fill(set, 0);
  free_sets_.push_back(entry.set);
  entry.set = kNone;
}

void PrefixIndex::widen_sets() {
  const size_t count = sets_.size() / words_;
  std::vector<uint64_t> wider(count * words_ * 2);
  for (size_t set = 0; set < count; ++set)
    std::copy_n(sets_.begin() + static_cast<ptrdiff_t>(set * words_), words_,
                wider.begin() + static_cast<ptrdiff_t>(set * words_ * 2));
  sets_ = std::move(wider);
  words_ *= 2;
}

// ---- Blocks by hash

int32_t PrefixIndex::find_entry(const BlockHash& hash) const {
  int32_t id = chains_[chain_of(hash)];
  while (id != kNone && entries_[id].hash != hash) id = entries_[id].next;
  return id;
}

int32_t PrefixIndex::add_entry(const BlockHash& hash) {
  if (num_blocks_ == chains_.size()) grow_chains();
  int32_t id = free_entry_;
  if (id == kNone) {
    id = static_cast<int32_t>(entries_.size());
    entries_.emplace_back();
  } else {
    free_entry_ = entries_[id].next;
  }
  int32_t& first = chains_[chain_of(hash)];
  entries_[id] = {.hash = hash, .next = first};
  first = id;
  ++num_blocks_;
  return id;
}

void PrefixIndex::remove_entry(int32_t id) {
  int32_t* at = &chains_[chain_of(entries_[id].hash)];
  while (*at != id) at = &entries_[*at].next;
  *at = entries_[id].next;
  entries_[id] = {.next = free_entry_};
  free_entry_ = id;
  --num_blocks_;
}

void PrefixIndex::grow_chains() {
  chains_.assign(chains_.size() * 2, kNone);
  for (int32_t id = 0; id < static_cast<int32_t>(entries_.size()); ++id) {
    Entry& entry = entries_[id];
    if (entry.num_caches == 0) continue;  // free
    int32_t& first = chains_[chain_of(entry.hash)];
    entry.next = first;
    first = id;
  }
}

}  // namespace rtp_llm
