#include "kv/slot_pool.h"

#include "check.h"
#include "tensor/check.h"

using namespace rtp_llm;

TEST(slots_are_counted_by_router_until_they_are_given_back) {
  SlotPool slots(3);
  CHECK(slots.grant(1) && slots.admit(2) && slots.grant(2));
  CHECK(!slots.grant(1));
  CHECK_EQ(slots.counts().taken, 3);
  CHECK_EQ(slots.counts().taken_by.at(2), 2);
  slots.give_back(2);
  CHECK_EQ(slots.counts().taken_by.at(2), 1);
  slots.give_back(2);
  CHECK(!slots.counts().taken_by.contains(2));
  CHECK(slots.grant(5));
}

TEST(the_queue_claims_the_next_free_slot_and_grants_wait_behind_it) {
  SlotPool slots(1);
  CHECK(slots.grant(1));
  CHECK(!slots.admit(2));
  slots.give_back(1);
  CHECK(!slots.grant(1));
  CHECK(slots.admit(2));
  slots.give_back(2);
  CHECK(slots.grant(1));
}

TEST(a_claim_that_is_withdrawn_holds_nobody_up) {
  SlotPool slots(1);
  CHECK(slots.grant(1));
  CHECK(!slots.admit(2));
  slots.withdraw_claim();
  slots.give_back(1);
  CHECK(slots.grant(1));
}

TEST(giving_back_what_nobody_holds_is_refused_by_name) {
  SlotPool slots(1);
  CHECK(slots.grant(1));
  CHECK_THROWS_WITH(slots.give_back(2), InvalidArgument, "router 2 holds no slot");
  CHECK_EQ(slots.counts().taken, 1);
}
