// The receiver's and the grant's tables of docs/protocol.md, a test per row; what a guard forbids
// stands beside it.
#include "bench_worker.h"

namespace rtp_llm {
namespace {

const RequestKey k = key_of_attempt(3);

struct Receiving : BenchWorker {
  void send(message::FromSender body) { post(event::FromSender{peer, std::move(body)}); }
  void reserve(const RequestKey& key = k, int32_t prompt_tokens = 8, GrantId given_up = 0) {
    send(message::Reserve{spec_of(key, prompt_tokens), given_up});
  }
  KvMessageHeader header(GrantId grant, uint16_t first_layer = 0) const {
    KvMessageHeader header;
    header.first_layer = first_layer;
    header.num_layers = 2;
    header.receiver_epoch = self.epoch;
    header.grant = grant;
    header.tokens = 8;
    return header;
  }
  bool accepts(const KvMessageHeader& header, uint64_t bytes = 160) {
    out.clear();
    return std::holds_alternative<Destination>(handover.accept(peer, header, bytes, now, out));
  }
  Refusal refusal(const KvMessageHeader& header, uint64_t bytes = 160) {
    out.clear();
    const auto answer = handover.accept(peer, header, bytes, now, out);
    REQUIRE(std::holds_alternative<Refusal>(answer));
    return std::get<Refusal>(answer);
  }
  void received(GrantId grant, bool ok = true, uint64_t checksum = 1, Seconds verify = 0) {
    post(event::ReceiveDone{grant, ok, 160, checksum, verify});
  }
  void commit(GrantId grant, uint64_t bytes = 320, uint64_t checksum = 2) {
    SampledToken first;
    first.token = 9;
    send(message::Commit{k, grant, first, bytes, checksum});
  }
  void transfer(GrantId grant) {
    for (uint16_t layer : {0, 2}) {
      CHECK(accepts(header(grant, layer)));
      received(grant);
    }
  }
  void to_verify() {  // no byte is here
    reserve();
    commit(1);
  }
  void to_running() {
    reserve();
    transfer(1);
    commit(1);
  }
  void check_state(ReceiverState state) const { CHECK(receives(k) == state); }
  void check_nothing_held() const {
    CHECK(!receives(k).has_value() || receives(k) == ReceiverState::kOver);
    CHECK_EQ(pool.free.size(), 6u);
    CHECK(handover.idle());
  }
};

// --- NONE

TEST(a_reserve_that_fits_is_granted_with_a_lease) {
  Receiving r;
  r.reserve();
  const auto granted = r.only<message::Granted>();
  CHECK_EQ(granted.grant, 1u);
  CHECK_EQ(granted.prefix_tokens, 0);
  CHECK_EQ(granted.lease, 5.0);
  r.check_state(ReceiverState::kGranted);
  CHECK_EQ(r.pool.granted.size(), 2u);
}

TEST(prefix_hits_are_named_in_tokens_and_never_written) {
  Receiving r;
  r.pool.prefix_blocks = 1;
  r.reserve();
  CHECK_EQ(r.only<message::Granted>().prefix_tokens, 4);
  CHECK(r.refusal(r.header(1)) == Refusal::kRange);
  KvMessageHeader header = r.header(1);
  header.first_token = 4;
  header.tokens = 4;
  CHECK(r.accepts(header, 80));
}

TEST(a_reserve_that_is_not_the_highest_attempt_is_fenced) {
  Receiving r;
  r.reserve(key_of_attempt(4));
  r.reserve();
  CHECK(r.only<message::PeerFenced>().key == k);
  CHECK(!r.receives(k).has_value());
}

TEST(a_reserve_of_an_expired_router_is_fenced) {
  Receiving r;
  r.post(event::RouterLost{kRouter});
  r.advance(10);
  r.reserve();
  CHECK(r.did<message::PeerFenced>());
}

TEST(a_reserve_whose_sequence_could_never_join_finds_no_room_and_ends_lower_attempts) {
  Receiving r;
  r.reserve(key_of_attempt(2));
  CHECK(r.did<message::Granted>());
  r.post(event::FromSender{r.peer, message::Reserve{spec_of(k), 0}, "max_model_len is 8"});
  CHECK_EQ(r.only<message::NoRoom>().reason, "max_model_len is 8");
  CHECK(!r.did<message::Granted>());
  CHECK(r.receives(key_of_attempt(2)) == ReceiverState::kOver);
  CHECK(!r.receives(k).has_value());
  r.check_nothing_held();
}

TEST(a_reserve_of_what_this_worker_runs_itself_is_fenced) {
  Receiving r;
  r.from_router(message::Submit{spec_of(k), std::nullopt, ""});
  r.reserve();
  CHECK(r.only<message::PeerFenced>().key == k);
  CHECK(!r.receives(k).has_value());
  CHECK(r.sends(k) == SenderState::kLocal);
}

TEST(a_reserve_without_a_free_slot_waits_for_one_like_for_blocks) {
  Receiving r;
  r.pool.free_slots = 1;
  r.reserve(key_of_attempt(1, 5));
  CHECK(r.did<message::Granted>());
  r.reserve();
  CHECK(r.out.empty());
  r.check_state(ReceiverState::kQueued);
  r.pool.free_slots = 1;  // a sequence ended
  r.post(event::RoomChanged{});
  CHECK(r.only<message::Granted>().key == k);
  r.reserve(key_of_attempt(1, 6));
  r.advance(1);
  CHECK(r.only<message::NoRoom>().key == key_of_attempt(1, 6));
}

TEST(a_void_grant_gives_its_slot_to_who_waits) {
  Receiving r;
  r.pool.free_slots = 1;
  r.reserve(key_of_attempt(1, 5));
  r.reserve();
  r.send(message::Abort{key_of_attempt(1, 5), 1});
  CHECK(r.only<message::Granted>().key == k);
}

TEST(a_void_grant_gives_its_slot_away_while_its_blocks_wait_for_a_late_message) {
  Receiving r;
  r.pool.free_slots = 1;
  const RequestKey other = key_of_attempt(1, 5);
  r.reserve(other);
  CHECK(r.accepts(r.header(1)));
  r.reserve();
  r.send(message::Abort{other, 1});
  CHECK(r.only<message::Granted>().key == k);
  CHECK_EQ(r.pool.quarantined.size(), 2u);
}

TEST(what_a_waiting_reserve_wants_is_worked_out_once) {
  Receiving r;
  r.pool.free_slots = 0;
  r.reserve();
  for (int i = 0; i < 5; ++i) r.post(event::RoomChanged{});
  CHECK_EQ(r.pool.wants, 1);
}

TEST(a_commit_of_a_token_that_is_none_is_expired) {
  const auto check_refused = [](SampledToken first) {
    Receiving r;
    r.reserve();
    r.transfer(1);
    r.send(message::Commit{k, 1, std::move(first), 320, 2});
    CHECK(r.did<message::Expired>());
    CHECK(!r.did<action::JoinSequence>());
  };
  check_refused({.token = -1});
  check_refused({.token = 100});
  check_refused({.position = 1, .token = 9});
  check_refused({.token = 9, .top_logprobs = {{1, 0.5f}}});  // none were asked for
}

TEST(what_runs_or_is_over_keeps_its_tokens_and_not_its_prompt) {
  Receiving r;
  auto spec = spec_of(k, 8, 0);
  const std::weak_ptr<const SequenceSpec> prompt = spec;
  r.send(message::Reserve{std::move(spec), 0});
  CHECK(!prompt.expired());
  r.transfer(1);
  r.commit(1);
  r.check_state(ReceiverState::kRunning);
  r.out.clear();
  CHECK(prompt.expired());
  r.post(event::Output{k, {.position = 1, .token = 8}});
  r.post(event::Finished{k, FinishReason::kStop});
  r.from_router(message::Attach{{{k, 0, message::AttachRole::kReceiver}}});
  CHECK_EQ(r.only<message::Outputs>().tokens.size(), 2u);
}

TEST(a_reserve_of_a_router_that_never_came_is_granted_and_ends_with_its_expiry) {
  Receiving r;
  const RequestKey strange{99, 1, 0, 0};
  r.send(message::Reserve{spec_of(strange), 0});
  CHECK(r.did<message::Granted>());
  for (int i = 0; i < 10; ++i) {
    r.advance(1);
    r.send(message::SenderHeartbeat{{1}});
  }
  CHECK(r.receives(strange) == ReceiverState::kOver);
}

TEST(a_reserve_of_a_router_that_acknowledged_draining_finds_no_room) {
  Receiving r;
  r.from_router(message::DrainingAcknowledged{});
  r.reserve();
  CHECK(r.did<message::NoRoom>());
  CHECK(!r.receives(k).has_value());
}

TEST(a_cancel_or_a_fence_of_an_unknown_key_fences_a_later_reserve) {
  Receiving cancelled;
  cancelled.from_router(message::Cancel{k});
  cancelled.reserve();
  CHECK(cancelled.did<message::PeerFenced>());

  Receiving fenced;
  fenced.from_router(message::Fence{k});
  CHECK(fenced.did<message::Fenced>());
  fenced.reserve();
  CHECK(fenced.did<message::PeerFenced>());
}

TEST(a_commit_of_an_unknown_key_is_expired) {
  Receiving r;
  r.commit(1);
  CHECK_EQ(r.only<message::Expired>().grant, 1u);
}

// --- QUEUED

TEST(a_reserve_that_does_not_fit_waits_and_is_granted_when_there_is_room) {
  Receiving r;
  r.pool.free = {0};
  r.reserve();
  CHECK(r.out.empty());
  r.check_state(ReceiverState::kQueued);
  r.pool.free = {0, 1};
  r.post(event::RoomChanged{});
  CHECK(r.did<message::Granted>());
}

TEST(a_reserve_waits_for_a_second_at_most) {
  Receiving r;
  r.pool.free = {};
  r.reserve();
  r.advance(0.9);
  r.reserve();  // again: nothing, and no longer wait
  CHECK(r.out.empty());
  r.advance(0.1);
  CHECK(r.did<message::NoRoom>());
  CHECK(!r.receives(k).has_value());
}

TEST(a_queued_reserve_of_a_lost_sender_is_forgotten) {
  Receiving r;
  r.pool.free = {};
  r.reserve();
  r.post(event::SenderLost{r.peer});
  CHECK(!r.receives(k).has_value());
}

TEST(reserves_are_served_in_order_of_arrival) {
  Receiving r;
  r.pool.free = {0};
  r.reserve();                         // two blocks
  r.reserve(key_of_attempt(0, 2), 4);  // one block: would fit
  CHECK(r.out.empty());
  r.advance(1);  // the first goes away
  CHECK(r.did<message::NoRoom>());
  CHECK(r.receives(key_of_attempt(0, 2)) != ReceiverState::kQueued);
}

// Four of six blocks are granted; `big` waits for three, `small` for two, which are there, behind it.
struct Waiting : Receiving {
  RequestKey big = key_of_attempt(1, 2), small = key_of_attempt(1, 3);
  WorkerKey other{"other", 9};

  Waiting() {
    reserve(k, 16);
    post(event::FromSender{other, message::Reserve{spec_of(big, 12), 0}});
    now += 0.5;
    reserve(small, 8);
    CHECK(receives(big) == ReceiverState::kQueued && receives(small) == ReceiverState::kQueued);
  }
};

TEST(who_waits_is_served_as_soon_as_the_one_in_front_is_gone) {
  Waiting cancelled;
  cancelled.from_router(message::Cancel{cancelled.big});
  CHECK(cancelled.only<message::Granted>().key == cancelled.small);

  Waiting lost;
  lost.post(event::SenderLost{lost.other});
  CHECK(lost.only<message::Granted>().key == lost.small);

  Waiting late;
  late.advance(0.5);
  CHECK(late.only<message::NoRoom>().key == late.big);
  CHECK(late.only<message::Granted>().key == late.small);
}

TEST(more_waiting_reserves_than_allowed_find_no_room_at_once) {
  Receiving r;
  r.pool.free = {};
  for (uint64_t request = 0; request < 256; ++request) r.reserve(key_of_attempt(0, request));
  CHECK(r.out.empty());
  r.reserve(key_of_attempt(0, 1000));
  CHECK(r.did<message::NoRoom>());
}

// --- GRANTED

TEST(a_reserve_again_gets_the_same_answer) {
  Receiving r;
  r.reserve();
  r.reserve();
  CHECK_EQ(r.only<message::Granted>().grant, 1u);
  CHECK_EQ(r.pool.granted.size(), 2u);
}

TEST(a_reserve_that_gives_the_grant_up_gets_another) {
  Receiving r;
  r.reserve();
  CHECK(r.accepts(r.header(1)));
  r.reserve(k, 8, 1);
  CHECK_EQ(r.only<message::Granted>().grant, 2u);
  CHECK(r.refusal(r.header(1)) == Refusal::kNoSuchGrant);
  CHECK_EQ(r.pool.quarantined.size(), 2u);
  r.received(1);
  CHECK_EQ(r.pool.quarantined.size(), 0u);
  r.reserve(k, 8, 1);
  CHECK_EQ(r.only<message::Granted>().grant, 2u);
}

TEST(a_reserve_of_another_worker_for_a_known_key_is_fenced) {
  Receiving r;
  const WorkerKey other{"other", 9};
  r.reserve();
  r.post(event::FromSender{other, message::Reserve{spec_of(k), 1}});
  CHECK(r.only<action::ToSender>().sender == other);
  CHECK(r.did<message::PeerFenced>());
  r.check_state(ReceiverState::kGranted);
}

TEST(a_lease_that_runs_out_voids_the_grant) {
  Receiving r;
  r.reserve();
  r.advance(5);
  r.check_nothing_held();
  CHECK(!r.receives(k).has_value());
  r.commit(1);
  CHECK(r.did<message::Expired>());
}

TEST(a_heartbeat_that_lists_the_grant_renews_its_lease) {
  Receiving r;
  r.reserve();
  r.advance(4);
  r.send(message::SenderHeartbeat{{1}});
  r.advance(4);
  r.check_state(ReceiverState::kGranted);
  r.send(message::SenderHeartbeat{{}});
  r.advance(1);
  r.check_nothing_held();
}

TEST(a_heartbeat_of_another_worker_renews_nothing) {
  Receiving r;
  r.reserve();
  r.now += 4;
  r.post(event::FromSender{WorkerKey{"other", 9}, message::SenderHeartbeat{{1}}});
  r.advance(1);
  r.check_nothing_held();
}

TEST(expiry_is_judged_before_each_event) {
  Receiving r;
  r.reserve();
  r.now += 6;  // this process was stopped; the Commit lay in its socket
  r.commit(1);
  CHECK(r.did<message::Expired>());
  CHECK(!r.receives(k).has_value());
}

TEST(a_lost_sender_voids_its_grant) {
  Receiving r;
  r.reserve();
  r.post(event::SenderLost{r.peer});
  r.check_nothing_held();
}

TEST(cancel_fence_abort_and_a_higher_attempt_void_the_grant) {
  Receiving cancelled;
  cancelled.reserve();
  cancelled.from_router(message::Cancel{k});
  cancelled.check_nothing_held();

  Receiving fenced;
  fenced.reserve();
  fenced.from_router(message::Fence{k});
  CHECK(fenced.did<message::Fenced>());
  CHECK(fenced.did<message::PeerFenced>());
  fenced.check_nothing_held();

  Receiving aborted;
  aborted.reserve();
  aborted.send(message::Abort{k});
  aborted.check_nothing_held();
  aborted.reserve();
  CHECK(aborted.did<message::PeerFenced>());

  Receiving outdated;
  outdated.reserve();
  outdated.from_router(message::Cancel{key_of_attempt(4)});
  outdated.check_nothing_held();
}

TEST(an_abort_of_an_older_grant_is_ignored) {
  Receiving r;
  r.reserve();         // grant 1
  r.reserve(k, 8, 1);  // its sender gave it up: grant 2
  CHECK_EQ(r.only<message::Granted>().grant, 2u);
  r.send(message::Abort{k, 1});
  r.check_state(ReceiverState::kGranted);
  r.send(message::Abort{k, 2});
  r.check_nothing_held();

  Receiving unanswered;  // the sender had heard of no grant
  unanswered.reserve();
  unanswered.send(message::Abort{k, 0});
  unanswered.check_nothing_held();
}

TEST(an_abort_of_another_worker_is_ignored) {
  Receiving r;
  r.reserve();
  r.post(event::FromSender{WorkerKey{"other", 9}, message::Abort{k}});
  r.check_state(ReceiverState::kGranted);
}

// --- the data path

TEST(a_message_lands_in_the_blocks_of_its_tokens) {
  Receiving r;
  r.reserve(k, 11);
  KvMessageHeader header = r.header(1, 2);
  header.first_token = 4;
  header.tokens = 7;
  const auto answer = r.handover.accept(r.peer, header, 140, r.now, r.out);
  REQUIRE(std::holds_alternative<Destination>(answer));
  const auto& destination = std::get<Destination>(answer);
  CHECK_EQ(destination.first_layer, 2);
  CHECK_EQ(destination.blocks, std::vector<int32_t>({1, 2}));
  CHECK_EQ(r.handover.counts().receiver.receives_in_flight, 1);
}

TEST(messages_are_let_into_live_grants_only) {
  Receiving r;
  CHECK(r.refusal(r.header(1)) == Refusal::kNoSuchGrant);
  r.reserve();
  CHECK(r.accepts(r.header(1)));
  r.from_router(message::Cancel{k});
  CHECK(r.refusal(r.header(1)) == Refusal::kNoSuchGrant);  // quarantined
  r.received(1);
  CHECK(r.refusal(r.header(1)) == Refusal::kNoSuchGrant);  // forgotten
}

TEST(a_message_for_a_running_sequence_is_refused) {
  Receiving r;
  r.to_running();
  CHECK(r.refusal(r.header(1)) == Refusal::kNoSuchGrant);
}

TEST(a_message_after_the_lease_is_refused_though_no_timer_fired) {
  Receiving r;
  r.reserve();
  r.now += 5;
  CHECK(r.refusal(r.header(1)) == Refusal::kNoSuchGrant);
}

TEST(a_message_must_fit_epoch_sender_range_and_size) {
  Receiving r;
  r.reserve();
  const auto refused = [&](auto change, Refusal refusal, uint64_t bytes = 160) {
    KvMessageHeader header = r.header(1);
    change(header);
    CHECK(r.refusal(header, bytes) == refusal);
  };
  refused([](auto& h) { h.version = 2; }, Refusal::kVersion);
  refused([](auto& h) { h.receiver_epoch = 5; }, Refusal::kEpoch);
  refused([](auto& h) { h.kv_group = 1; }, Refusal::kRange);
  refused([](auto& h) { h.first_layer = 3; }, Refusal::kRange);
  refused([](auto& h) { h.num_layers = 0; }, Refusal::kRange);
  refused([](auto& h) { h.tokens = 9; }, Refusal::kRange);
  refused([](auto& h) { h.tokens = 0; }, Refusal::kRange);
  refused([](auto& h) { h.first_token = 0xfffffffc; }, Refusal::kRange);
  refused([](auto& h) { h.first_token = 2, h.tokens = 4; }, Refusal::kRange, 80);
  refused([](auto&) {}, Refusal::kSize, 159);
  const auto other = r.handover.accept(WorkerKey{"other", 9}, r.header(1), 160, r.now, r.out);
  CHECK(std::get<Refusal>(other) == Refusal::kSender);
  CHECK(r.accepts(r.header(1)));
}

// --- VERIFY

TEST(verify_waits_for_exactly_the_bytes_and_then_commits_and_joins) {
  Receiving r;
  r.reserve();
  CHECK(r.accepts(r.header(1, 0)));
  CHECK(r.accepts(r.header(1, 2)));
  r.received(1);
  r.commit(1);
  CHECK(r.out.empty());
  r.check_state(ReceiverState::kVerify);
  r.received(1);
  const auto join = r.only<action::JoinSequence>();
  CHECK_EQ(join.spec->output, std::vector<int32_t>({9}));
  CHECK_EQ(join.blocks.size(), 2u);
  CHECK(r.did<message::PeerCommitted>());
  CHECK(r.did<message::Committed>());
  CHECK_EQ(r.only<message::Outputs>().tokens.at(0).token, 9);
  CHECK_EQ(r.pool.referenced.size(), 2u);
  r.check_state(ReceiverState::kRunning);
}

TEST(committed_says_how_long_bytes_were_under_way_and_verified_also_when_asked_again) {
  const auto check = [](const message::Committed& committed) {  // of 0.75 s in which messages were under way
    CHECK_EQ(committed.times.wire, 0.5f);
    CHECK_EQ(committed.times.verify, 0.25f);
  };
  Receiving r;
  r.reserve();
  r.now += 1;  // until the first one came
  CHECK(r.accepts(r.header(1, 0)));
  r.now += 0.25;
  r.received(1, true, 1, 0.125);
  r.now += 1;  // the sender computes
  CHECK(r.accepts(r.header(1, 2)));
  r.now += 0.5;
  r.received(1, true, 1, 0.125);
  r.now += 2;  // until the sender had a token
  r.commit(1);
  check(r.only<message::Committed>());
  r.from_router(message::Fence{k});
  check(r.only<message::Committed>());
  r.post(event::Finished{k, FinishReason::kStop});
  r.from_router(message::Attach{{{k, 1, message::AttachRole::kReceiver}}});
  check(r.only<message::Committed>());
  r.from_router(message::Fence{k});
  check(r.only<message::Committed>());
}

TEST(messages_that_are_under_way_together_count_once) {
  Receiving r;
  r.reserve();
  CHECK(r.accepts(r.header(1, 0)));
  r.now += 0.25;
  CHECK(r.accepts(r.header(1, 2)));
  r.now += 0.25;
  r.received(1);
  r.now += 0.25;
  r.received(1);
  r.commit(1);
  CHECK_EQ(r.only<message::Committed>().times.wire, 0.75f);
}

TEST(what_had_not_to_be_sent_took_no_time) {
  Receiving r;
  r.pool.prefix_blocks = 2;
  r.reserve();
  r.now += 1;
  r.commit(1, 0, 0);
  const auto committed = r.only<message::Committed>();
  CHECK_EQ(committed.times.wire, 0.f);
  CHECK_EQ(committed.times.verify, 0.f);
}

TEST(verify_does_not_commit_while_a_receive_is_under_way) {
  Receiving r;
  r.reserve();
  CHECK(r.accepts(r.header(1)));
  r.commit(1, 0, 0);  // claims no bytes, but a write may still come
  CHECK(!r.did<action::JoinSequence>());
  CHECK(r.did<message::BadChecksum>());
  CHECK_EQ(r.pool.quarantined.size(), 2u);
}

TEST(a_commit_again_in_verify_is_ignored) {
  Receiving r;
  r.to_verify();
  r.commit(1);
  CHECK(r.out.empty());
}

TEST(a_wrong_checksum_voids_the_grant) {
  Receiving r;
  r.reserve();
  r.transfer(1);
  r.commit(1, 320, 3);
  const auto bad = r.only<message::BadChecksum>();
  CHECK_EQ(bad.expected, 3u);
  CHECK_EQ(bad.found, 2u);
  CHECK(!r.did<action::JoinSequence>());
  CHECK(!r.receives(k).has_value());
  r.check_nothing_held();
  r.reserve();
  CHECK_EQ(r.only<message::Granted>().grant, 2u);
}

TEST(a_second_without_progress_in_verify_is_a_bad_checksum) {
  Receiving r;
  r.to_verify();
  r.advance(0.9);
  CHECK(r.accepts(r.header(1)));
  r.advance(0.9);
  r.received(1);
  r.advance(0.9);
  r.check_state(ReceiverState::kVerify);
  r.advance(0.1);
  CHECK(r.did<message::BadChecksum>());
  r.check_nothing_held();
}

TEST(a_receive_that_failed_is_no_progress_in_verify) {
  Receiving r;
  r.reserve();
  CHECK(r.accepts(r.header(1, 0)));
  CHECK(r.accepts(r.header(1, 2)));
  r.commit(1);
  r.now += 0.9;
  r.received(1, false);
  r.check_state(ReceiverState::kVerify);
  r.advance(0.1);
  CHECK(r.did<message::BadChecksum>());
}

TEST(a_heartbeat_puts_nothing_off_in_verify) {
  Receiving r;
  r.to_verify();
  r.now += 0.9;
  r.send(message::SenderHeartbeat{{1}});
  r.advance(0.1);
  CHECK(r.did<message::BadChecksum>());
}

TEST(a_receive_that_failed_brings_no_bytes) {
  Receiving r;
  r.reserve();
  CHECK(r.accepts(r.header(1, 0)));
  CHECK(r.accepts(r.header(1, 2)));
  r.received(1);
  r.received(1, false);
  r.commit(1);
  CHECK(!r.did<action::JoinSequence>());
  r.advance(1);
  CHECK(r.did<message::BadChecksum>());
}

TEST(in_verify_the_bytes_decide_and_neither_lease_nor_a_lost_sender) {
  Receiving r;
  r.reserve();
  CHECK(r.accepts(r.header(1, 0)));
  CHECK(r.accepts(r.header(1, 2)));
  r.now += 4.8;
  r.commit(1);
  r.advance(0.5);
  r.post(event::SenderLost{r.peer});
  r.check_state(ReceiverState::kVerify);
  r.received(1);
  r.received(1);
  r.check_state(ReceiverState::kRunning);
}

TEST(cancel_and_fence_in_verify_void_the_grant) {
  Receiving cancelled;
  cancelled.to_verify();
  cancelled.from_router(message::Cancel{k});
  cancelled.check_nothing_held();

  Receiving fenced;
  fenced.to_verify();
  fenced.from_router(message::Fence{k});
  CHECK(fenced.did<message::Fenced>());
  fenced.check_nothing_held();
}

TEST(a_commit_of_a_grant_that_is_not_live_is_expired) {
  Receiving r;
  r.reserve();
  r.reserve(k, 8, 1);
  r.commit(1);
  CHECK_EQ(r.only<message::Expired>().grant, 1u);
  r.check_state(ReceiverState::kGranted);
}

TEST(a_commit_of_another_position_is_expired) {
  Receiving r;
  r.reserve();
  r.transfer(1);
  SampledToken first;
  first.position = 1;
  r.send(message::Commit{k, 1, first, 320, 2});
  CHECK(r.did<message::Expired>());
  r.check_state(ReceiverState::kGranted);
}

TEST(a_commit_of_another_worker_is_expired) {
  Receiving r;
  r.reserve();
  r.transfer(1);
  r.post(event::FromSender{WorkerKey{"other", 9}, message::Commit{k, 1, {}, 320, 2}});
  CHECK(r.did<message::Expired>());
  CHECK(!r.did<action::JoinSequence>());
}

// --- RUNNING

TEST(a_running_sequence_answers_committed_to_reserve_commit_and_fence) {
  Receiving r;
  r.to_running();
  r.reserve();
  CHECK(r.did<message::PeerCommitted>());
  r.commit(1);
  CHECK(r.did<message::PeerCommitted>());
  r.from_router(message::Fence{k});
  CHECK(r.did<message::Committed>());
  r.check_state(ReceiverState::kRunning);
}

TEST(an_abort_does_not_touch_a_running_sequence) {
  Receiving r;
  r.to_running();
  r.send(message::Abort{k});
  r.check_state(ReceiverState::kRunning);
}

TEST(a_running_sequence_outlives_lease_and_sender) {
  Receiving r;
  r.to_running();
  r.post(event::SenderLost{r.peer});
  r.advance(50);
  r.check_state(ReceiverState::kRunning);
}

TEST(cancel_higher_attempt_and_router_expiry_end_a_running_sequence) {
  Receiving cancelled;
  cancelled.to_running();
  cancelled.from_router(message::Cancel{k});
  CHECK(cancelled.did<action::CancelSequence>());
  cancelled.check_state(ReceiverState::kOver);

  Receiving outdated;
  outdated.to_running();
  outdated.reserve(key_of_attempt(4));
  CHECK(outdated.only<action::CancelSequence>().key == k);

  Receiving expired;
  expired.to_running();
  expired.post(event::RouterLost{kRouter});
  expired.advance(10);
  CHECK(expired.did<action::CancelSequence>());
}

TEST(a_running_sequence_that_the_engine_gives_up_is_fenced) {
  Receiving r;
  r.to_running();
  r.post(event::Finished{k, FinishReason::kCancelled});
  CHECK(r.did<message::Fenced>());
  r.commit(1);
  CHECK(r.did<message::PeerFenced>());
}

// --- OVER

TEST(a_finished_sequence_replays_its_tokens_and_stays_committed) {
  Receiving r;
  r.to_running();
  SampledToken token;
  token.position = 1;
  r.post(event::Output{k, token});
  r.post(event::Finished{k, FinishReason::kStop});
  token.position = 2;
  token.finish = FinishReason::kStop;  // was on its way
  r.post(event::Output{k, token});
  r.check_state(ReceiverState::kOver);
  r.from_router(message::Attach{{{k, 1, message::AttachRole::kReceiver}}});
  CHECK(r.did<message::Committed>());
  CHECK_EQ(r.only<message::Outputs>().tokens.size(), 2u);
  r.commit(1);
  CHECK(r.did<message::PeerCommitted>());
  r.from_router(message::Fence{k});
  CHECK(r.did<message::Committed>());
  r.from_router(message::Cancel{k});
  CHECK(r.out.empty());
  r.advance(60);
  CHECK(!r.receives(k).has_value());
}

TEST(a_sequence_that_is_over_unfinished_is_fenced) {
  Receiving r;
  r.to_running();
  r.from_router(message::Cancel{k});
  r.reserve();
  CHECK(r.did<message::PeerFenced>());
  r.commit(1);
  CHECK(r.did<message::PeerFenced>());
  r.from_router(message::Fence{k});
  CHECK(r.did<message::Fenced>());
  r.from_router(message::Attach{{{k, 0, message::AttachRole::kReceiver}}});
  CHECK(r.did<message::Fenced>());
  CHECK(!r.did<message::Outputs>());
}

TEST(an_attach_replays_a_running_sequence_from_the_next_position) {
  Receiving r;
  r.to_running();
  SampledToken token;
  for (token.position = 1; token.position < 4; ++token.position) r.post(event::Output{k, token});
  r.from_router(message::Attach{{{k, 2, message::AttachRole::kReceiver}}});
  const auto replay = r.only<message::Outputs>();
  REQUIRE(replay.tokens.size() == 2);
  CHECK_EQ(replay.tokens.front().position, 2);
}

TEST(an_attach_of_an_unknown_key_is_silent_for_a_receiver_and_fenced_for_others) {
  Receiving r;
  r.from_router(message::Attach{{{k, 0, message::AttachRole::kReceiver}}});
  CHECK(r.out.empty());
  r.from_router(message::Attach{{{k, 0, message::AttachRole::kSender}}});
  CHECK(r.did<message::Fenced>());
  r.from_router(message::Attach{{{k, 0, message::AttachRole::kAlone}}});
  CHECK(r.did<message::Fenced>());
}

TEST(an_attach_of_a_granted_key_is_silent) {
  Receiving r;
  r.reserve();
  r.from_router(message::Attach{{{k, 0, message::AttachRole::kReceiver}}});
  CHECK(r.out.empty());
}

// --- QUARANTINE

TEST(quarantined_blocks_wait_for_the_last_receive) {
  Receiving r;
  r.reserve();
  CHECK(r.accepts(r.header(1, 0)));
  CHECK(r.accepts(r.header(1, 2)));
  r.from_router(message::Cancel{k});
  CHECK_EQ(r.pool.quarantined.size(), 2u);
  CHECK_EQ(r.handover.counts().receiver.quarantined_blocks, 2);
  r.received(1);
  CHECK_EQ(r.pool.quarantined.size(), 2u);
  CHECK_EQ(r.pool.free.size(), 4u);
  r.received(1);
  r.check_nothing_held();
}

TEST(after_a_second_in_quarantine_the_sender_s_endpoint_is_closed_and_its_other_grants_expire) {
  Receiving r;
  const RequestKey sibling = key_of_attempt(0, 2);
  r.reserve();
  r.reserve(sibling);
  CHECK(r.accepts(r.header(1)));
  CHECK(r.accepts(r.header(2)));
  r.from_router(message::Cancel{k});
  r.advance(1);
  const auto close = r.only<action::CloseEndpoint>();
  CHECK(close.peer == r.peer);
  CHECK(close.direction == Direction::kReceive);
  CHECK_EQ(r.only<message::Expired>().grant, 2u);
  CHECK(!r.receives(sibling).has_value());
  CHECK_EQ(r.pool.quarantined.size(), 4u);
  r.received(1, false);
  r.received(2, false);
  r.post(event::EndpointClosed{r.peer, Direction::kReceive});
  r.check_nothing_held();
}

TEST(an_endpoint_that_is_closing_is_asked_again_for_a_later_quarantine) {
  Receiving r;
  r.reserve();
  CHECK(r.accepts(r.header(1)));
  r.send(message::Abort{k, 1});
  r.advance(1);
  CHECK(r.did<action::CloseEndpoint>());
  const RequestKey later = key_of_attempt(1, 2);
  r.reserve(later);
  CHECK(r.accepts(r.header(2)));
  r.send(message::Abort{later, 2});
  r.advance(1);
  CHECK(!r.did<action::CloseEndpoint>());  // the first is still under way
  r.received(1, false);
  r.post(event::EndpointClosed{r.peer, Direction::kReceive});
  r.advance(1);
  CHECK(r.did<action::CloseEndpoint>());
}

TEST(closing_an_endpoint_leaves_grants_of_other_senders_alone) {
  Receiving r;
  const RequestKey strange = key_of_attempt(0, 2);
  r.reserve();
  CHECK(r.accepts(r.header(1)));
  r.post(event::FromSender{WorkerKey{"there", 3}, message::Reserve{spec_of(strange), 0}});  // same place, new epoch
  r.from_router(message::Cancel{k});
  r.advance(1);
  CHECK(r.did<action::CloseEndpoint>());
  CHECK(r.receives(strange) == ReceiverState::kGranted);
}

TEST(freed_quarantine_is_room_for_a_waiting_reserve) {
  Receiving r;
  r.pool.free = {0, 1};
  r.reserve();
  CHECK(r.accepts(r.header(1)));
  r.from_router(message::Cancel{k});
  r.reserve(key_of_attempt(0, 2));
  CHECK(!r.did<message::Granted>());
  r.received(1);
  CHECK(r.did<message::Granted>());
}

TEST(a_sequence_and_its_grant_are_counted_in_the_state_that_they_are_in_and_no_other) {
  const auto counted = [](auto lead_to) {
    Receiving r;
    lead_to(r);
    CHECK(!r.handover.idle());
    const ReceiverCounts c = r.handover.counts().receiver;
    return std::vector{c.queued,
                       c.granted,
                       c.verifying,
                       c.running,
                       c.live_grants,
                       c.granted_blocks,
                       c.quarantined_grants,
                       c.quarantined_blocks,
                       c.receives_in_flight};
  };
  using Counts = std::vector<int64_t>;
  CHECK_EQ(counted([](Receiving& r) { r.pool.free_slots = 0, r.reserve(); }), (Counts{1, 0, 0, 0, 0, 0, 0, 0, 0}));
  CHECK_EQ(counted([](Receiving& r) { r.reserve(); }), (Counts{0, 1, 0, 0, 1, 2, 0, 0, 0}));
  CHECK_EQ(counted([](Receiving& r) { r.to_verify(); }), (Counts{0, 0, 1, 0, 1, 2, 0, 0, 0}));
  CHECK_EQ(counted([](Receiving& r) { r.to_running(); }), (Counts{0, 0, 0, 1, 0, 0, 0, 0, 0}));
  CHECK_EQ(counted([](Receiving& r) {
             r.reserve();
             CHECK(r.accepts(r.header(1)));
             r.from_router(message::Cancel{k});
           }),
           (Counts{0, 0, 0, 0, 0, 0, 1, 2, 1}));
}

TEST(a_receive_done_that_nobody_accepted_breaks_the_contract) {
  Receiving r;
  r.reserve();
  CHECK_THROWS(r.received(1), ContractBroken);
}

}  // namespace
}  // namespace rtp_llm
