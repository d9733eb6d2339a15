// Random operations against a model that is written as directly as the rules: for every block who
// holds it, what pins it, and after which step it may leave. The pool must agree after each one.

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "check.h"
#include "kv/block_pool.h"

namespace rtp_llm {
namespace {

using Blocks = std::vector<int32_t>;

BlockHash hash(int id) {
  BlockHash hash;
  hash.bytes = {static_cast<uint8_t>(id), static_cast<uint8_t>(id >> 8)};
  return hash;
}

struct Walk {
  static constexpr int kBlocks = 24;

  explicit Walk(int seed) : random(seed), pool(kBlocks, 16) {}

  int below(int limit) { return static_cast<int>(random() % limit); }

  // ---- What the rules say

  // Blocks that something may still touch: nobody may be given one of these.
  bool busy(int32_t block) const {
    for (const Blocks& sequence : sequences)
      if (std::ranges::count(sequence, block)) return true;
    for (const auto* held : {&granted, &quarantined})
      for (const Blocks& blocks : *held)
        if (std::ranges::count(blocks, block)) return true;
    if (pins.contains(block)) return true;
    const auto gate = touched_until.find(block);
    return gate != touched_until.end() && gate->second > ended;
  }

  void check_fresh(const Blocks& blocks) {
    std::set<int32_t> distinct(blocks.begin(), blocks.end());
    CHECK_EQ(distinct.size(), blocks.size());
    for (int32_t block : blocks) CHECK(!busy(block));
  }

  void left(const Blocks& blocks) {
    for (int32_t block : blocks) touched_until[block] = launched;
  }

  template <class List>
  Blocks take_any(List& list) {
    const int i = below(list.size());
    Blocks blocks = list[i];
    list.erase(list.begin() + i);
    return blocks;
  }

  // ---- Operations

  void allocate() {
    if (auto blocks = pool.allocate(below(5))) {
      check_fresh(*blocks);
      for (int32_t block : *blocks) content.erase(block);
      sequences.push_back(*blocks);
    }
  }

  void match() {
    std::vector<BlockHash> hashes;
    std::vector<int> ids;
    const int first = below(40);
    for (int i = 0; i < 3; ++i) ids.push_back(first + i), hashes.push_back(hash(first + i));
    const Blocks hits = pool.match(hashes, 3);
    for (size_t i = 0; i < hits.size(); ++i) CHECK(content.contains(hits[i]) && content[hits[i]] == ids[i]);
    sequences.push_back(hits);
  }

  void fork() {
    if (sequences.empty()) return;
    Blocks copy = sequences[below(sequences.size())];
    pool.reference(copy);
    sequences.push_back(copy);
  }

  void release() {
    if (sequences.empty()) return;
    const Blocks blocks = take_any(sequences);
    pool.release(blocks);
    left(blocks);
  }

  void insert() {
    if (sequences.empty()) return;
    const Blocks& sequence = sequences[below(sequences.size())];
    if (sequence.empty()) return;
    const int32_t block = sequence[below(sequence.size())];
    if (content.contains(block)) return;
    const int id = below(40);
    const int32_t known = pool.insert(block, hash(id));
    if (known == block) content[block] = id;
    CHECK(content.contains(known) && content[known] == id);
  }

  void withdraw() {
    const int first = below(40);
    pool.withdraw(std::vector{hash(first), hash(first + 1)});
    std::erase_if(content, [&](const auto& known) { return known.second == first || known.second == first + 1; });
  }

  void grant() {
    const BlockCounts before = pool.counts();
    const int count = below(6);
    const BlockDemand promised = {.blocks = below(4), .sequences = below(3)};
    const bool room = before.free + before.cached - demand.blocks - promised.blocks - count >=
                      std::max(1, demand.sequences + promised.sequences);
    const auto blocks = pool.grant(count, promised);
    CHECK_EQ(blocks.has_value(), room);
    if (!blocks) return;
    check_fresh(*blocks);
    for (int32_t block : *blocks) content.erase(block);
    granted.push_back(*blocks);
  }

  void end_grant() {
    if (granted.empty()) return;
    const Blocks blocks = take_any(granted);
    const bool pinned = std::ranges::any_of(blocks, [&](int32_t block) { return pins.contains(block); });
    if (!pinned && below(2)) {
      pool.granted_to_referenced(blocks);
      sequences.push_back(blocks);
    } else {
      pool.quarantine(blocks);
      quarantined.push_back(blocks);
    }
  }

  void end_quarantine() {
    if (quarantined.empty()) return;
    const Blocks blocks = take_any(quarantined);
    pool.free_quarantined(blocks);
    left(blocks);
  }

  void pin() {
    auto& owners = below(2) ? sequences : granted;
    if (owners.empty()) return;
    const Blocks blocks = owners[below(owners.size())];
    pool.pin(blocks);
    transfers.push_back(blocks);
    for (int32_t block : blocks) ++pins[block];
  }

  void unpin() {
    if (transfers.empty()) return;
    const Blocks blocks = take_any(transfers);
    pool.unpin(blocks);
    for (int32_t block : blocks)
      if (--pins[block] == 0) pins.erase(block);
  }

  void step() {
    if (launched - ended < 2 && below(2)) {
      pool.step_launched(++launched);
    } else if (ended < launched) {
      pool.step_ended(++ended);
    }
  }

  void compare() {
    pool.check_integrity();
    std::set<int32_t> in_sequences, in_grants, in_quarantine;
    for (const Blocks& blocks : sequences) in_sequences.insert(blocks.begin(), blocks.end());
    for (const Blocks& blocks : granted) in_grants.insert(blocks.begin(), blocks.end());
    for (const Blocks& blocks : quarantined) in_quarantine.insert(blocks.begin(), blocks.end());
    int gated = 0, cached = 0;
    for (int32_t block = 0; block < kBlocks; ++block) {
      if (in_sequences.contains(block) || in_grants.contains(block) || in_quarantine.contains(block)) continue;
      if (busy(block)) {
        ++gated;
      } else if (content.contains(block)) {
        ++cached;
      }
    }
    const BlockCounts counts = pool.counts();
    CHECK_EQ(counts.referenced, in_sequences.size());
    CHECK_EQ(counts.granted, in_grants.size());
    CHECK_EQ(counts.quarantined, in_quarantine.size());
    CHECK_EQ(counts.gated, gated);
    CHECK_EQ(counts.cached, cached);
    CHECK_EQ(counts.free, kBlocks - counts.referenced - counts.granted - counts.quarantined - gated - cached);
    compare_what_is_told();
  }

  // Who follows the cache's events knows what it holds, and a snapshot says the same.
  void compare_what_is_told() {
    const auto events = pool.cache_events(heard + 1);
    CHECK(events.has_value());
    for (const CacheEvent& event : *events) {
      CHECK(event.kind == CacheEvent::Kind::kStored ? told.insert(event.hash).second : told.erase(event.hash) == 1);
      ++heard;
    }
    CHECK_EQ(heard, pool.last_cache_event());
    std::set<BlockHash> known;
    for (const auto& [block, id] : content) known.insert(hash(id));
    CHECK(told == known);
    const CacheSnapshot snapshot = pool.cache_snapshot();
    CHECK_EQ(snapshot.number, heard);
    CHECK_EQ(snapshot.hashes.size(), known.size());
    CHECK(std::set<BlockHash>(snapshot.hashes.begin(), snapshot.hashes.end()) == known);
  }

  void run(int operations) {
    for (int i = 0; i < operations; ++i) {
      switch (below(13)) {
        case 0: allocate(); break;
        case 1: match(); break;
        case 2: fork(); break;
        case 3:
        case 4: release(); break;
        case 5: insert(); break;
        case 6: grant(); break;
        case 7: end_grant(); break;
        case 8: end_quarantine(); break;
        case 9: below(2) ? pin() : unpin(); break;
        case 10: step(); break;
        case 11:
          demand = {.blocks = below(8), .sequences = below(4)};
          pool.set_demand(demand);
          break;
        case 12: withdraw(); break;
      }
      compare();
    }
  }

  // Ends everything; all blocks must come back.
  void finish() {
    while (!granted.empty()) end_grant();
    while (!quarantined.empty()) end_quarantine();
    while (!sequences.empty()) release();
    while (!transfers.empty()) unpin();
    while (ended < launched) pool.step_ended(++ended);
    compare();
    const BlockCounts counts = pool.counts();
    CHECK_EQ(counts.free + counts.cached, kBlocks);
  }

  std::mt19937 random;
  BlockPool pool;
  std::vector<Blocks> sequences, granted, quarantined, transfers;
  std::map<int32_t, int> pins;
  std::map<int32_t, uint64_t> touched_until;  // released: the last step that may touch it
  std::map<int32_t, int> content;             // hash that the block is known by
  std::set<BlockHash> told;                   // by the cache's events
  uint64_t heard = 0;
  BlockDemand demand;
  uint64_t launched = 0, ended = 0;
};

TEST(random_walks_keep_every_rule) {
  for (int seed = 0; seed < 40; ++seed) {
    Walk walk(seed);
    walk.run(600);
    walk.finish();
  }
}

}  // namespace
}  // namespace rtp_llm
