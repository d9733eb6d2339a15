#include "transfer/block_grants.h"

#include "check.h"
#include "pool_only.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

namespace {

constexpr int kBlockTokens = 4;

std::optional<GrantPool::Reservation> grant(BlockGrants& grants, const SequenceSpec& spec) {
  return grants.grant(grants.want(std::make_shared<SequenceSpec>(spec)));
}

}  // namespace

TEST(a_grant_holds_prefix_hits_and_zeroed_blocks_for_all_tokens) {
  PoolOnly engine(10);
  BlockGrants grants(cpu(), engine);
  engine.cache(prompt_of(9));  // two full blocks
  const GrantPool::Reservation reservation = grant(grants, prompt_of(14)).value();
  CHECK_EQ(reservation.blocks.size(), 4);
  CHECK_EQ(reservation.prefix_blocks, 2);
  CHECK(!engine.is_zero(reservation.blocks[1]));  // it holds the prefix
  CHECK(engine.is_zero(reservation.blocks[2]));
  CHECK(engine.is_zero(reservation.blocks[3]));
  grants.quarantine(reservation);
  grants.free_quarantined(reservation);
  CHECK_EQ(engine.block_pool().counts().cached, 2);
  CHECK_EQ(engine.block_pool().counts().free, 8);
}

TEST(what_granted_sequences_will_grow_by_is_kept_free_until_they_run_or_are_over) {
  PoolOnly engine(16);  // two percent: one block
  BlockGrants grants(cpu(), engine);
  const GrantPool::Reservation first = grant(grants, prompt_of(8, 100)).value();  // 2 blocks, will take more: 4 count
  CHECK_EQ(first.growth, 4);
  const GrantPool::Reservation second = grant(grants, prompt_of(8, 6)).value();  // 13 tokens are stored: 2 more blocks
  CHECK_EQ(second.growth, 2);
  CHECK(!grant(grants, prompt_of(5 * kBlockTokens)));  // 12 - 6 - 5 = 1, two sequences are promised
  const GrantPool::Reservation third = grant(grants, prompt_of(4 * kBlockTokens)).value();
  CHECK_EQ(third.growth, 0);
  grants.join(first);  // the engine speaks for it from here on
  grants.quarantine(second);
  grants.free_quarantined(second);
  CHECK(grant(grants, prompt_of(9 * kBlockTokens)).has_value());  // 10 - 9 = 1
}

TEST(a_grant_that_does_not_fit_wakes_nobody) {
  PoolOnly engine(4);
  BlockGrants grants(cpu(), engine);
  engine.cache(prompt_of(8));
  int heard = 0;
  const auto listening = engine.block_pool().on_room([&] { ++heard; });
  CHECK(!grant(grants, prompt_of(16)));
  CHECK_EQ(heard, 0);
  CHECK_EQ(engine.block_pool().counts().cached, 2);
}

TEST(a_grant_takes_a_slot_and_gives_it_back_when_it_is_void_not_when_its_sequence_joins) {
  PoolOnly engine(64, small_layout(), 2);
  BlockGrants grants(cpu(), engine);
  SequenceSpec spec = prompt_of(4);
  spec.key.router_epoch = 7;
  const GrantPool::Reservation first = grant(grants, spec).value();
  const GrantPool::Reservation second = grant(grants, prompt_of(4)).value();
  CHECK_EQ(engine.slot_pool().counts().taken_by.at(7), 1);
  CHECK(!grant(grants, prompt_of(4)));
  CHECK_EQ(engine.block_pool().counts().granted, 2);
  grants.join(first);
  CHECK_EQ(engine.block_pool().counts().granted, 1);
  CHECK_EQ(engine.block_pool().counts().referenced, 1);
  CHECK(!grant(grants, prompt_of(4)));
  grants.quarantine(second);  // a late message may still write into its blocks, but nobody will run
  CHECK(grant(grants, prompt_of(4)).has_value());
}

TEST(a_grant_that_finds_no_blocks_keeps_no_slot) {
  PoolOnly engine(4);
  BlockGrants grants(cpu(), engine);
  CHECK(!grant(grants, prompt_of(100)));
  CHECK_EQ(engine.slot_pool().counts().taken, 0);
}
