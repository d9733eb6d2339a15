#include "kv/block_pool.h"

#include <atomic>
#include <memory>
#include <set>
#include <thread>

#include "check.h"
#include "tensor/check.h"

namespace rtp_llm {
namespace {

using Blocks = std::vector<int32_t>;

BlockHash hash(int id) {
  BlockHash hash;
  hash.bytes = {static_cast<uint8_t>(id), static_cast<uint8_t>(id >> 8)};
  return hash;
}

// `count` cached blocks with hashes first_hash, first_hash + 1, ...
Blocks fill_cache(BlockPool& pool, int count, int first_hash) {
  const Blocks blocks = pool.allocate(count).value();
  for (int i = 0; i < count; ++i) pool.insert(blocks[i], hash(first_hash + i));
  pool.release(blocks);
  return blocks;
}

// ---- Allocation, references

TEST(allocate_gives_distinct_blocks_or_nothing) {
  BlockPool pool(4, 16);
  const Blocks three = pool.allocate(3).value();
  CHECK_EQ(std::set<int32_t>(three.begin(), three.end()).size(), 3);
  CHECK(!pool.allocate(2));
  CHECK_EQ(pool.counts().free, 1);
  CHECK_EQ(pool.counts().referenced, 3);
  CHECK(pool.allocate(0).value().empty());
  pool.check_integrity();
}

TEST(a_block_is_free_again_with_its_last_reference) {
  BlockPool pool(2, 16);
  const Blocks blocks = pool.allocate(1).value();
  pool.reference(blocks);
  pool.release(blocks);
  CHECK_EQ(pool.counts().referenced, 1);
  pool.release(blocks);
  CHECK_EQ(pool.counts().free, 2);
  pool.check_integrity();
}

TEST(a_pool_has_blocks_and_they_hold_tokens) {
  CHECK_THROWS_WITH(BlockPool(0, 16), InvalidArgument, "num_blocks must be positive, got 0");
  CHECK_THROWS_WITH(BlockPool(4, 0), InvalidArgument, "block_tokens must be positive, got 0");
}

TEST(misuse_names_the_block_and_changes_nothing) {
  BlockPool pool(4, 16);
  const Blocks blocks = pool.allocate(2).value();
  CHECK_THROWS_WITH(pool.release(Blocks{blocks[0], 812}), InvalidArgument, "block 812 out of range, pool has 4");
  CHECK_THROWS_WITH(pool.release(Blocks{-1}), InvalidArgument, "block -1 out of range");
  CHECK_THROWS_WITH(pool.release(Blocks{blocks[0], 3}), InvalidArgument, "can't release block 3: it is free");
  CHECK_THROWS_WITH(pool.release(Blocks{blocks[0], blocks[0]}), InvalidArgument, "named more often");
  CHECK_THROWS_WITH(pool.reference(Blocks{3}), InvalidArgument, "can't reference block 3: it is free");
  CHECK_THROWS_WITH(pool.insert(3, hash(1)), InvalidArgument, "can't insert block 3: it is free");
  CHECK_THROWS_WITH(pool.pin(Blocks{3}), InvalidArgument, "can't pin block 3: it is free");
  CHECK_THROWS_WITH(pool.unpin(blocks), InvalidArgument, "can't unpin");
  CHECK_THROWS_WITH(pool.quarantine(blocks), InvalidArgument, "it is referenced");
  CHECK_THROWS_WITH(pool.free_quarantined(blocks), InvalidArgument, "it is referenced");
  CHECK_THROWS_WITH(pool.granted_to_referenced(blocks), InvalidArgument, "it is referenced");
  CHECK_THROWS(pool.allocate(-1), InvalidArgument);
  CHECK_THROWS(pool.allocate_for_step(-1), InvalidArgument);
  CHECK_THROWS(pool.grant(-1), InvalidArgument);
  CHECK_EQ(pool.counts().referenced, 2);
  CHECK_EQ(pool.counts().free, 2);
  pool.check_integrity();
}

// ---- Prefix cache

TEST(a_released_block_with_a_hash_is_cached_and_hit) {
  BlockPool pool(4, 16);
  const Blocks blocks = fill_cache(pool, 3, 100);
  CHECK_EQ(pool.counts().cached, 3);
  const std::vector<BlockHash> hashes = {hash(100), hash(101), hash(999), hash(102)};
  CHECK_EQ(pool.count_cached(hashes), 2);
  CHECK_EQ(pool.counts().referenced, 0);
  CHECK_EQ(pool.match(hashes, 8), Blocks({blocks[0], blocks[1]}));  // stops at the first unknown hash
  CHECK_EQ(pool.match(hashes, 1), Blocks({blocks[0]}));
  CHECK_EQ(pool.counts().referenced, 2);
  pool.release(Blocks{blocks[0], blocks[1]});
  CHECK_EQ(pool.counts().referenced, 1);  // the first was hit twice
  pool.check_integrity();
}

TEST(a_block_in_use_is_hit_too) {
  BlockPool pool(4, 16);
  const Blocks blocks = pool.allocate(1).value();
  pool.insert(blocks[0], hash(1));
  CHECK_EQ(pool.match(std::vector{hash(1)}, 8), blocks);
  pool.release(blocks);
  CHECK_EQ(pool.counts().referenced, 1);
  pool.check_integrity();
}

TEST(of_two_blocks_with_the_same_content_the_older_is_known) {
  BlockPool pool(4, 16);
  const Blocks blocks = pool.allocate(2).value();
  CHECK_EQ(pool.insert(blocks[0], hash(1)), blocks[0]);
  CHECK_EQ(pool.insert(blocks[0], hash(1)), blocks[0]);
  CHECK_EQ(pool.insert(blocks[1], hash(1)), blocks[0]);
  CHECK_THROWS_WITH(pool.insert(blocks[0], hash(2)), InvalidArgument, "has a hash already");
  pool.release(blocks);
  CHECK_EQ(pool.counts().cached, 1);
  CHECK_EQ(pool.counts().free, 3);
  pool.check_integrity();
}

TEST(cached_blocks_are_evicted_only_when_free_ones_run_out_least_recently_released_first) {
  BlockPool pool(4, 16);
  fill_cache(pool, 1, 1);
  fill_cache(pool, 1, 2);
  pool.release(pool.match(std::vector{hash(1)}, 1));  // hash 2 is the older one now
  (void)pool.allocate(2).value();
  CHECK_EQ(pool.counts().cached, 2);
  (void)pool.allocate(1).value();
  CHECK_EQ(pool.count_cached(std::vector{hash(1)}), 1);
  CHECK_EQ(pool.count_cached(std::vector{hash(2)}), 0);
  pool.check_integrity();
}

TEST(of_one_sequence_the_last_block_is_evicted_first) {
  BlockPool pool(3, 16);
  fill_cache(pool, 3, 1);
  (void)pool.allocate(1).value();
  CHECK_EQ(pool.count_cached(std::vector{hash(1), hash(2), hash(3)}), 2);
}

TEST(an_evicted_block_has_lost_its_hash) {
  BlockPool pool(1, 16);
  fill_cache(pool, 1, 1);
  const Blocks blocks = pool.allocate(1).value();
  CHECK_EQ(pool.insert(blocks[0], hash(2)), blocks[0]);
  pool.check_integrity();
}

// ---- Gate

TEST(a_block_released_under_a_running_step_waits_for_its_end) {
  BlockPool pool(1, 16);
  const Blocks blocks = pool.allocate(1).value();
  pool.step_launched(1);
  pool.release(blocks);
  CHECK_EQ(pool.counts().gated, 1);
  CHECK(!pool.allocate(1));
  CHECK(!pool.grant(1));
  pool.step_ended(1);
  CHECK_EQ(pool.counts().free, 1);
  pool.check_integrity();
}

TEST(the_gate_waits_for_the_last_step_launched_before_the_release) {
  BlockPool pool(2, 16);
  const Blocks blocks = pool.allocate(2).value();
  pool.step_launched(1);
  pool.release({&blocks[0], 1});
  pool.step_launched(2);  // may be in flight beside step 1
  pool.release({&blocks[1], 1});
  pool.step_ended(1);
  CHECK_EQ(pool.counts().free, 1);
  CHECK_EQ(pool.counts().gated, 1);
  pool.check_integrity();
  pool.step_launched(3);  // later steps don't delay it
  pool.step_ended(2);
  CHECK_EQ(pool.counts().free, 2);
}

TEST(a_pinned_block_waits_for_its_last_pin) {
  BlockPool pool(1, 16);
  const Blocks blocks = pool.allocate(1).value();
  pool.pin(blocks);
  pool.pin(blocks);
  pool.release(blocks);
  CHECK_EQ(pool.counts().gated, 1);
  CHECK(!pool.allocate(1));
  pool.unpin(blocks);
  CHECK_EQ(pool.counts().gated, 1);
  pool.check_integrity();
  pool.unpin(blocks);
  CHECK_EQ(pool.counts().free, 1);
  pool.check_integrity();
}

TEST(step_and_pin_must_both_end_in_either_order) {
  for (bool step_first : {true, false}) {
    BlockPool pool(1, 16);
    const Blocks blocks = pool.allocate(1).value();
    pool.step_launched(1);
    pool.pin(blocks);
    pool.release(blocks);
    step_first ? pool.step_ended(1) : pool.unpin(blocks);
    CHECK_EQ(pool.counts().gated, 1);
    pool.check_integrity();
    step_first ? pool.unpin(blocks) : pool.step_ended(1);
    CHECK_EQ(pool.counts().free, 1);
    pool.check_integrity();
  }
}

TEST(a_gated_block_is_not_evictable_but_may_be_hit_and_is_gated_again) {
  BlockPool pool(1, 16);
  const Blocks blocks = pool.allocate(1).value();
  pool.insert(blocks[0], hash(1));
  pool.step_launched(1);
  pool.release(blocks);
  CHECK_EQ(pool.counts().gated, 1);
  CHECK(!pool.allocate(1));
  CHECK_EQ(pool.match(std::vector{hash(1)}, 1), blocks);
  CHECK_EQ(pool.counts().referenced, 1);
  pool.check_integrity();
  pool.release(blocks);
  CHECK_EQ(pool.counts().gated, 1);  // step 1 may still read it
  pool.step_launched(2);
  CHECK_EQ(pool.match(std::vector{hash(1)}, 1), blocks);
  pool.release(blocks);
  pool.step_ended(1);
  CHECK_EQ(pool.counts().gated, 1);  // and now step 2 may
  pool.check_integrity();
  pool.step_ended(2);
  CHECK_EQ(pool.counts().cached, 1);
  pool.check_integrity();
}

TEST(a_hit_keeps_the_pins_of_the_transfer_that_still_reads_the_block) {
  BlockPool pool(1, 16);
  const Blocks blocks = pool.allocate(1).value();
  pool.insert(blocks[0], hash(1));
  pool.pin(blocks);
  pool.release(blocks);
  CHECK_EQ(pool.match(std::vector{hash(1)}, 1), blocks);
  pool.release(blocks);
  CHECK_EQ(pool.counts().gated, 1);
  pool.unpin(blocks);
  CHECK_EQ(pool.counts().cached, 1);
}

TEST(a_gated_block_may_still_get_its_hash) {
  BlockPool pool(1, 16);
  const Blocks blocks = pool.allocate(1).value();
  pool.step_launched(1);
  pool.release(blocks);
  pool.insert(blocks[0], hash(1));
  pool.step_ended(1);
  CHECK_EQ(pool.counts().cached, 1);
  pool.check_integrity();
}

TEST(steps_go_forward) {
  BlockPool pool(1, 16);
  CHECK_THROWS_WITH(pool.step_ended(1), InvalidArgument, "step 1 ended");
  pool.step_launched(3);
  CHECK_THROWS_WITH(pool.step_launched(3), InvalidArgument, "launched after step 3");
  pool.step_ended(3);
  CHECK_THROWS(pool.step_ended(3), InvalidArgument);
}

// ---- Grants

TEST(a_grant_becomes_the_sequences_blocks) {
  BlockPool pool(100, 16);
  const Blocks blocks = pool.grant(10).value();
  CHECK_EQ(pool.counts().granted, 10);
  pool.pin(blocks);
  CHECK_THROWS_WITH(pool.granted_to_referenced(blocks), InvalidArgument, "1 transfers may still touch it");
  pool.unpin(blocks);
  pool.granted_to_referenced(blocks);
  CHECK_EQ(pool.counts().referenced, 10);
  pool.release(blocks);
  CHECK_EQ(pool.counts().free, 100);
  pool.check_integrity();
}

TEST(quarantined_blocks_are_given_to_nobody) {
  BlockPool pool(4, 16);
  const Blocks blocks = pool.grant(3).value();
  pool.quarantine(blocks);
  CHECK_EQ(pool.counts().quarantined, 3);
  CHECK(!pool.allocate(2));
  CHECK(!pool.grant(1));
  CHECK_THROWS(pool.granted_to_referenced(blocks), InvalidArgument);
  CHECK_THROWS(pool.pin(blocks), InvalidArgument);  // no message starts into a void grant
  pool.free_quarantined(blocks);
  CHECK_EQ(pool.counts().free, 4);
  pool.check_integrity();
}

TEST(blocks_leave_quarantine_through_the_gate) {
  BlockPool pool(4, 16);
  const Blocks blocks = pool.grant(2).value();
  pool.step_launched(1);
  pool.pin({&blocks[0], 1});
  pool.quarantine(blocks);
  pool.free_quarantined(blocks);
  CHECK_EQ(pool.counts().gated, 2);
  pool.step_ended(1);
  CHECK_EQ(pool.counts().gated, 1);
  pool.unpin({&blocks[0], 1});
  CHECK_EQ(pool.counts().free, 4);
  pool.check_integrity();
}

TEST(a_grant_leaves_two_percent_of_the_pool) {
  BlockPool pool(150, 16);
  CHECK(!pool.grant(148));  // 2 left, 3 wanted
  CHECK(pool.grant(147).has_value());
}

TEST(a_grant_leaves_what_running_sequences_may_need_and_one_block_each) {
  BlockPool pool(100, 16);
  pool.set_demand({.blocks = 40, .sequences = 10});
  CHECK(!pool.grant(51));  // 100 - 40 - 51 = 9 < 10
  CHECK(pool.grant(50).has_value());
  CHECK_THROWS(pool.set_demand({.blocks = -1, .sequences = 0}), InvalidArgument);
}

TEST(granted_blocks_count_once) {
  BlockPool pool(100, 16);
  const Blocks first = pool.grant(40).value();
  CHECK(!pool.grant(59));  // 60 - 59 = 1 < 2
  const Blocks second = pool.grant(58).value();
  pool.granted_to_referenced(first);
  CHECK(!pool.grant(1));  // who holds the blocks makes no room
  pool.quarantine(second);
  CHECK(!pool.grant(1));
  pool.free_quarantined(second);
  CHECK(pool.grant(58).has_value());
  pool.check_integrity();
}

TEST(a_grant_leaves_what_the_sequences_of_earlier_grants_may_need_and_one_block_each) {
  BlockPool pool(100, 16);
  pool.set_demand({.blocks = 20, .sequences = 5});
  const BlockDemand promised{.blocks = 20, .sequences = 5};
  CHECK(!pool.grant(51, promised));  // 100 - 20 - 20 - 51 = 9 < 10
  CHECK(pool.grant(50, promised).has_value());
}

TEST(a_grant_refers_to_known_blocks_and_takes_fresh_ones_for_the_rest) {
  BlockPool pool(10, 16);
  const Blocks cached = fill_cache(pool, 2, 1);
  const GrantedBlocks granted = pool.grant(std::vector{hash(1), hash(2), hash(9)}, 4, {}).value();
  CHECK_EQ(granted.num_hits, 2);
  CHECK_EQ(Blocks(granted.blocks.begin(), granted.blocks.begin() + 2), cached);
  CHECK_EQ(granted.blocks.size(), 4);
  CHECK_EQ(pool.counts().referenced, 2);
  CHECK_EQ(pool.counts().granted, 2);
  pool.check_integrity();
}

TEST(prefix_hits_of_a_grant_are_not_room_any_more) {
  BlockPool pool(10, 16);
  fill_cache(pool, 5, 1);
  const std::vector<BlockHash> hashes = {hash(1), hash(2), hash(3), hash(4), hash(5)};
  CHECK(!pool.grant(hashes, 10, {}));  // all ten
  CHECK(pool.grant(hashes, 9, {}).has_value());
  CHECK_EQ(pool.counts().free, 1);
}

TEST(a_refused_grant_touches_nothing) {
  BlockPool pool(4, 16);
  fill_cache(pool, 1, 1);
  fill_cache(pool, 1, 2);
  int heard = 0;
  const auto listening = pool.on_room([&] { ++heard; });
  CHECK(!pool.grant(std::vector{hash(1)}, 4, {}));
  CHECK_EQ(heard, 0);  // else who waits for room would ask again at once, for ever
  CHECK_EQ(pool.counts().cached, 2);
  (void)pool.allocate(3).value();
  CHECK_EQ(pool.count_cached(std::vector{hash(2)}), 1);  // hash 1 was the older one still
}

TEST(a_grant_may_evict_cached_blocks) {
  BlockPool pool(10, 16);
  fill_cache(pool, 10, 1);
  CHECK_EQ(pool.grant(9).value().size(), 9);
  CHECK_EQ(pool.counts().cached, 1);
  CHECK_EQ(pool.count_cached(std::vector{hash(1)}), 1);  // the first block of the prefix is the last to go
  pool.check_integrity();
}

TEST(a_watermark_binds_grants_alone) {
  BlockPool pool(10, 16);
  pool.set_demand({.blocks = 10, .sequences = 10});
  CHECK(!pool.grant(0));
  CHECK(pool.allocate(10).has_value());
}

TEST(listeners_hear_when_there_may_be_more_room) {
  BlockPool pool(10, 16);
  int heard = 0;
  const auto listening = pool.on_room([&] { ++heard; });
  const auto hears = [&](auto&& change) {
    const int before = heard;
    change();
    return heard > before;
  };
  const Blocks blocks = pool.allocate(1).value(), first = pool.grant(2).value(), second = pool.grant(2).value();
  CHECK_EQ(heard, 0);
  pool.step_launched(1);
  CHECK(!hears([&] { pool.release(blocks); }));  // gated
  CHECK(hears([&] { pool.step_ended(1); }));
  CHECK(hears([&] { pool.granted_to_referenced(first); }));
  CHECK(hears([&] { pool.quarantine(second); }));
  CHECK(hears([&] { pool.free_quarantined(second); }));
  CHECK(hears([&] { pool.set_demand({}); }));
}

TEST(a_listener_that_has_ended_is_not_called) {
  BlockPool pool(10, 16);
  auto first = std::make_unique<int>(0), second = std::make_unique<int>(0);
  BlockPool::RoomListener stays;
  {
    const BlockPool::RoomListener ends = pool.on_room([&] { ++*first; });
    BlockPool::RoomListener moved = pool.on_room([&] { ++*second; });
    stays = std::move(moved);
    pool.set_demand({});
  }
  CHECK_EQ(*first, 1);
  first.reset();
  pool.set_demand({});
  CHECK_EQ(*second, 2);
  stays = {};
  second.reset();
  pool.set_demand({});
}

TEST(a_listener_may_end_while_other_threads_make_room) {
  BlockPool pool(64, 16);
  std::atomic<bool> done = false;
  std::thread other([&] {
    while (!done) pool.release(pool.allocate(3).value());
  });
  for (int i = 0; i < 300; ++i) {
    auto heard = std::make_unique<int>(0);
    const auto listening = pool.on_room([count = heard.get()] { ++*count; });
  }
  done = true;
  other.join();
}

// ---- Withdrawal

TEST(no_hit_finds_a_withdrawn_block_in_whatever_state_it_is) {
  BlockPool pool(10, 16);
  const Blocks cached = fill_cache(pool, 2, 1);
  const Blocks used = pool.allocate(2).value();
  pool.insert(used[0], hash(3));
  pool.insert(used[1], hash(4));
  pool.step_launched(1);
  pool.release(std::span(used).subspan(1));  // gated
  const std::vector hashes{hash(1), hash(2), hash(3), hash(4), hash(5)};
  CHECK_EQ(pool.count_cached(hashes), 4);
  pool.withdraw(hashes);
  CHECK(pool.match(hashes, 5).empty());
  CHECK_EQ(pool.grant(hashes, 1, {}).value().num_hits, 0);
  pool.check_integrity();
  CHECK_EQ(pool.counts().cached, 0);
  CHECK_EQ(pool.counts().referenced, 1);  // who refers to it keeps it
  pool.step_ended(1);
  pool.release(std::span(used).first(1));
  CHECK_EQ(pool.counts().cached, 0);
  CHECK_EQ(pool.counts().free, 9);
  pool.insert(pool.allocate(1).value()[0], hash(3));  // may be known anew
  CHECK_EQ(pool.count_cached(std::vector{hash(3)}), 1);
}

TEST(withdrawing_leaves_what_lies_behind_an_unknown_hash_and_beside_it) {
  BlockPool pool(10, 16);
  fill_cache(pool, 3, 1);
  pool.withdraw(std::vector{hash(77), hash(2)});
  CHECK_EQ(pool.count_cached(std::vector{hash(1)}), 1);
  CHECK_EQ(pool.count_cached(std::vector{hash(2)}), 0);
  CHECK_EQ(pool.count_cached(std::vector{hash(3)}), 1);
}

TEST(nothing_is_known_when_all_is_withdrawn_and_who_follows_the_cache_hears_it) {
  BlockPool pool(10, 16);
  fill_cache(pool, 3, 1);
  const Blocks used = pool.allocate(1).value();
  pool.insert(used[0], hash(4));
  const uint64_t before = pool.last_cache_event();
  pool.withdraw_all();
  CHECK_EQ(pool.count_cached(std::vector{hash(1)}), 0);
  CHECK_EQ(pool.count_cached(std::vector{hash(4)}), 0);
  CHECK_EQ(pool.counts().cached, 0);
  CHECK_EQ(pool.counts().free, 9);
  CHECK_EQ(pool.counts().referenced, 1);  // who refers to it keeps it
  CHECK_EQ(pool.cache_events(before + 1).value().size(), 4);
  CHECK(pool.cache_snapshot().hashes.empty());
  pool.check_integrity();
}

TEST(threads_may_share_a_pool) {
  BlockPool pool(64, 16);
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t)
    threads.emplace_back([&pool] {
      for (int i = 0; i < 2000; ++i)
        if (const auto blocks = pool.allocate(7)) pool.release(*blocks);
    });
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(pool.counts().free, 64);
  pool.check_integrity();
}

}  // namespace
}  // namespace rtp_llm
