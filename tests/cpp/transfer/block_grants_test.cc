#include "transfer/block_grants.h"

#include "check.h"
#include "pool_only.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

namespace {

constexpr int kBlockTokens = 4;

}  // namespace

TEST(a_grant_holds_prefix_hits_and_zeroed_blocks_for_all_tokens) {
  PoolOnly engine(10);
  BlockGrants grants(cpu(), engine);
  engine.cache(prompt_of(9));  // two full blocks
  const GrantPool::Room room = grants.grant(prompt_of(14)).value();
  CHECK_EQ(room.blocks.size(), 4);
  CHECK_EQ(room.prefix_blocks, 2);
  CHECK(!engine.is_zero(room.blocks[1]));  // it holds the prefix
  CHECK(engine.is_zero(room.blocks[2]));
  CHECK(engine.is_zero(room.blocks[3]));
  grants.quarantine(room);
  grants.free_quarantined(room);
  CHECK_EQ(engine.block_pool().counts().cached, 2);
  CHECK_EQ(engine.block_pool().counts().free, 8);
}

TEST(what_granted_sequences_will_grow_by_is_kept_free_until_they_run_or_are_over) {
  PoolOnly engine(16);  // two percent: one block
  BlockGrants grants(cpu(), engine);
  const GrantPool::Room first = grants.grant(prompt_of(8, 100)).value();  // 2 blocks, will take more: 4 count
  CHECK_EQ(first.growth, 4);
  const GrantPool::Room second = grants.grant(prompt_of(8, 6)).value();  // 13 tokens are stored: 2 more blocks
  CHECK_EQ(second.growth, 2);
  CHECK(!grants.grant(prompt_of(5 * kBlockTokens)));  // 12 - 6 - 5 = 1, two sequences are promised
  const GrantPool::Room third = grants.grant(prompt_of(4 * kBlockTokens)).value();
  CHECK_EQ(third.growth, 0);
  grants.join(first);  // the engine speaks for it from here on
  grants.quarantine(second);
  grants.free_quarantined(second);
  CHECK(grants.grant(prompt_of(9 * kBlockTokens)).has_value());  // 10 - 9 = 1
}

TEST(a_grant_that_does_not_fit_wakes_nobody) {
  PoolOnly engine(4);
  BlockGrants grants(cpu(), engine);
  engine.cache(prompt_of(8));
  int heard = 0;
  const auto listening = engine.block_pool().on_room([&] { ++heard; });
  CHECK(!grants.grant(prompt_of(16)));
  CHECK_EQ(heard, 0);
  CHECK_EQ(engine.block_pool().counts().cached, 2);
}
