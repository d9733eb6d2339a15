#include "kv/prefix_index.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "check.h"
#include "tensor/check.h"

namespace rtp_llm {
namespace {

using Kind = CacheEvent::Kind;

BlockHash hash(int id) {
  BlockHash hash;
  hash.bytes = {static_cast<uint8_t>(id), static_cast<uint8_t>(id >> 8)};
  return hash;
}

std::vector<BlockHash> hashes(std::initializer_list<int> ids) {
  std::vector<BlockHash> all;
  for (int id : ids) all.push_back(hash(id));
  return all;
}

TEST(each_cache_is_found_by_the_run_of_leading_blocks_that_it_holds) {
  PrefixIndex index;
  const int a = index.add_cache(), b = index.add_cache(), c = index.add_cache();
  index.reset(a, hashes({1, 2, 3}));
  index.reset(b, hashes({1, 3}));  // a hole: block 3 is no use
  index.reset(c, hashes({2, 3}));
  const PrefixHits hits = index.find(hashes({1, 2, 3, 4}));
  CHECK_EQ(hits.blocks(a), 3);
  CHECK_EQ(hits.blocks(b), 1);
  CHECK_EQ(hits.blocks(c), 0);
  CHECK(hits.longest(9, 0) == (std::vector<int32_t>{a, b}));
  CHECK(index.find(hashes({9})).longest(9, 0).empty());
  CHECK(index.find({}).longest(9, 0).empty());
}

TEST(of_equal_hits_those_from_a_drawn_one_on_are_given) {
  PrefixIndex index;
  std::vector<int32_t> all;
  for (int i = 0; i < 5; ++i) index.reset(all.emplace_back(index.add_cache()), hashes({1}));
  index.reset(all[3], hashes({1, 2}));
  const PrefixHits hits = index.find(hashes({1, 2}));
  CHECK(hits.longest(3, 0) == (std::vector<int32_t>{3, 0, 1}));
  CHECK(hits.longest(3, 3) == (std::vector<int32_t>{3, 4, 0}));
  CHECK(hits.longest(1, 7) == (std::vector<int32_t>{3}));
}

TEST(a_cache_that_is_cleared_reset_or_removed_holds_what_came_after) {
  PrefixIndex index;
  const int a = index.add_cache(), b = index.add_cache();
  index.reset(a, hashes({1, 2}));
  index.reset(b, hashes({2}));
  index.apply(a, std::vector<CacheEvent>{{Kind::kCleared, {}}, {Kind::kStored, hash(5)}});
  CHECK(index.held_by(a) == hashes({5}));
  index.reset(a, hashes({6}));
  CHECK(index.held_by(a) == hashes({6}));
  index.remove_cache(a);
  CHECK_EQ(index.num_blocks(), 1);
  CHECK_THROWS(index.held_by(a), InvalidArgument);
  CHECK_EQ(index.add_cache(), a);
  CHECK(index.held_by(a).empty());
  index.check_integrity();
}

TEST(an_event_of_no_known_kind_is_refused_and_nothing_is_applied) {
  PrefixIndex index;
  const int a = index.add_cache();
  for (int kind : {0, 4})
    CHECK_THROWS(index.apply(a, std::vector<CacheEvent>{{Kind::kStored, hash(1)}, {static_cast<Kind>(kind), hash(2)}}),
                 InvalidArgument);
  CHECK(index.held_by(a).empty());
}

// 150 caches, so that sets of holders are two and three words wide, and are made and given up all the time.
TEST(after_random_events_it_is_what_a_map_of_sets_is) {
  std::mt19937 random(1);
  const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
  PrefixIndex index;
  std::map<int, std::set<int>> caches;
  for (int step = 0; step < 60'000; ++step) {
    const int what = below(1000);
    if (what < 5 && caches.size() < 150) {
      const auto [added, is_new] = caches.try_emplace(index.add_cache());
      CHECK(is_new);
      continue;
    }
    if (caches.empty()) continue;
    auto& [cache, held] = *std::next(caches.begin(), below(static_cast<int>(caches.size())));
    if (what == 5) {
      index.remove_cache(cache);
      caches.erase(cache);
    } else if (what == 6) {
      std::vector<BlockHash> all;
      held.clear();
      for (int i = 0; i < 40; ++i) {
        held.insert(below(200));
        all.push_back(hash(*held.rbegin()));
      }
      for (int id : held) all.push_back(hash(id));
      index.reset(cache, all);
    } else if (what == 7) {
      held.clear();
      index.apply(cache, std::vector<CacheEvent>{{Kind::kCleared, {}}});
    } else {
      const int id = std::min(below(200), below(200));  // some are popular
      const bool stored = below(2);
      if (stored) {
        held.insert(id);
      } else {
        held.erase(id);
      }
      index.apply(cache, std::vector<CacheEvent>{{stored ? Kind::kStored : Kind::kEvicted, hash(id)}});
    }
    if (step % 500 != 0) continue;
    index.check_integrity();
    const int first = below(20);
    std::vector<BlockHash> prompt;
    for (int id = first; id < first + 8; ++id) prompt.push_back(hash(id));
    const PrefixHits hits = index.find(prompt);
    for (const auto& [number, ids] : caches) {
      int run = 0;
      while (run < 8 && ids.contains(first + run)) ++run;
      CHECK_EQ(hits.blocks(number), run);
      std::vector<BlockHash> known = index.held_by(number);
      std::ranges::sort(known);
      std::vector<BlockHash> expected;
      for (int id : ids) expected.push_back(hash(id));
      std::ranges::sort(expected);
      CHECK(known == expected);
    }
    const std::vector<int32_t> order = hits.longest(1 << 20, random());
    for (size_t i = 1; i < order.size(); ++i) CHECK(hits.blocks(order[i - 1]) >= hits.blocks(order[i]));
  }
}

TEST(memory_follows_what_is_held_and_not_what_has_happened) {
  PrefixIndex index;
  const int cache = index.add_cache();
  for (int i = 0; i < 300'000; ++i) {
    index.apply(cache, std::vector<CacheEvent>{{Kind::kStored, hash(i % 65536)}});
    if (i >= 100) index.apply(cache, std::vector<CacheEvent>{{Kind::kEvicted, hash((i - 100) % 65536)}});
  }
  CHECK_EQ(index.num_blocks(), 100);
  CHECK(index.memory_bytes() < 100'000);
}

}  // namespace
}  // namespace rtp_llm
