// What both machines share: attempts, routers, time.
#include <cmath>

#include "bench_worker.h"
#include "handover/deadlines.h"

namespace rtp_llm {
namespace {

TEST(a_higher_attempt_as_receiver_ends_a_lower_one_as_sender) {
  BenchWorker w;
  w.from_router(message::Submit{spec_of(key_of_attempt(1)), w.peer, "there:1"});
  w.post(event::FromSender{w.peer, message::Reserve{spec_of(key_of_attempt(2)), 0}});
  CHECK(w.did<action::CancelSequence>());
  CHECK(w.sends(key_of_attempt(1)) == SenderState::kGone);
  CHECK(w.receives(key_of_attempt(2)) == ReceiverState::kGranted);
}

TEST(a_higher_attempt_as_sender_ends_a_lower_one_as_receiver) {
  BenchWorker w;
  w.post(event::FromSender{w.peer, message::Reserve{spec_of(key_of_attempt(1)), 0}});
  w.from_router(message::Submit{spec_of(key_of_attempt(2)), std::nullopt, ""});
  CHECK(w.receives(key_of_attempt(1)) == ReceiverState::kOver);
  CHECK_EQ(w.pool.free.size(), 6u);
}

TEST(a_fence_or_a_cancel_of_a_higher_attempt_ends_lower_ones) {
  for (bool fence : {false, true}) {
    BenchWorker w;
    w.from_router(message::Submit{spec_of(key_of_attempt(1)), std::nullopt, ""});
    if (fence) {
      w.from_router(message::Fence{key_of_attempt(2)});
    } else {
      w.from_router(message::Cancel{key_of_attempt(2)});
    }
    CHECK(w.sends(key_of_attempt(1)) == SenderState::kGone);
  }
}

TEST(two_routers_may_number_their_requests_alike) {
  BenchWorker w;
  w.post(event::RouterConnected{88});
  w.from_router(message::Submit{spec_of(key_of_attempt(1)), std::nullopt, ""});
  event::FromRouter other;
  other.router_epoch = 88;
  other.body = message::Submit{spec_of({88, 1, 0, 5}), std::nullopt, ""};
  w.post(other);
  CHECK(w.sends(key_of_attempt(1)) == SenderState::kLocal);
  CHECK(w.sends({88, 1, 0, 5}) == SenderState::kLocal);
}

TEST(the_ledger_forgets_an_answer_a_minute_after_it_was_named) {
  AttemptLedger ledger(60);
  CHECK(ledger.raise(key_of_attempt(2), 0));
  CHECK(!ledger.raise(key_of_attempt(2), 30));
  CHECK(!ledger.raise(key_of_attempt(1), 30));
  CHECK(ledger.is_stale(key_of_attempt(1)));
  ledger.forget(60);
  CHECK_EQ(ledger.size(), 1u);
  ledger.forget(90);
  CHECK_EQ(ledger.size(), 0u);
}

TEST(next_deadline_is_the_first_thing_that_runs_out) {
  BenchWorker w;
  CHECK(!w.handover.next_deadline().has_value());
  w.post(event::FromSender{w.peer, message::Reserve{spec_of(key_of_attempt(1)), 0}});
  CHECK_EQ(*w.handover.next_deadline(), 105.0);
  w.post(event::RouterLost{kRouter});
  w.advance(5);
  CHECK_EQ(*w.handover.next_deadline(), 110.0);
  w.advance(5);
  CHECK_EQ(*w.handover.next_deadline(), 170.0);
  w.advance(60);
  CHECK(!w.handover.next_deadline().has_value());
}

TEST(a_deadline_that_is_no_number_breaks_the_contract_and_disturbs_no_other) {
  Deadlines<int> deadlines;
  deadlines.set(1, 5.0);
  CHECK_THROWS(deadlines.set(2, std::nan("")), ContractBroken);
  CHECK_EQ(deadlines.pop_due(5.0).value(), 1);
}

TEST(a_router_has_no_say_in_the_answers_of_another) {
  BenchWorker w;
  w.from_router(message::Submit{spec_of(key_of_attempt(1)), std::nullopt, ""});
  const auto say = [&](message::FromRouter body) {
    event::FromRouter event;
    event.router_epoch = 66;
    event.body = std::move(body);
    w.post(event);
  };
  say(message::Cancel{key_of_attempt(1)});
  CHECK(w.out.empty());
  say(message::Fence{key_of_attempt(1)});
  CHECK(w.out.empty());
  say(message::Submit{spec_of(key_of_attempt(2)), std::nullopt, ""});
  CHECK(w.out.empty());
  say(message::Attach{
      {{key_of_attempt(1), 0, message::AttachRole::kAlone}, {key_of_attempt(5), 0, message::AttachRole::kAlone}}});
  CHECK(w.out.empty());
  CHECK(w.sends(key_of_attempt(1)) == SenderState::kLocal);
}

}  // namespace
}  // namespace rtp_llm
