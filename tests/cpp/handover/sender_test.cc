// The sender's table of docs/protocol.md, a test per row; what a guard forbids stands beside it.
#include <cmath>

#include "bench_worker.h"

namespace rtp_llm {
namespace {

const RequestKey k = key_of_attempt(3);

struct Sending : BenchWorker {
  using BenchWorker::BenchWorker;
  void submit(int32_t prompt_tokens = 8, int32_t max_tokens = 16) {
    from_router(message::Submit{spec_of(k, prompt_tokens, 0, max_tokens), peer, "there:1"});
  }
  void schedule(int32_t prompt_tokens = 8, int32_t cached = 0) {
    std::vector<int32_t> blocks;
    for (int32_t i = 0; i < (prompt_tokens + 3) / 4; ++i) blocks.push_back(40 + i);
    post(event::Scheduled{k, blocks, prompt_tokens, cached});
  }
  void compute(int32_t first_layer, int32_t first_token, int32_t tokens) {
    post(event::LayersComputed{k, first_layer, 2, first_token, tokens});
  }
  void compute_all(int32_t tokens = 8) {
    compute(0, 0, tokens);
    compute(2, 0, tokens);
  }
  void prefill(FinishReason finish = FinishReason::kNone) {
    SampledToken first;
    first.token = 9;
    first.finish = finish;
    post(event::Prefilled{k, first});
  }
  void receive(message::FromReceiver body) { post(event::FromReceiver{peer, std::move(body)}); }
  void grant(GrantId id, int32_t prefix_tokens = 0) { receive(message::Granted{k, id, prefix_tokens, 5.0}); }
  void done(GrantId id, bool ok = true, uint64_t bytes = 160, uint64_t checksum = 1) {
    post(event::PushDone{k, id, ok, bytes, checksum});
  }
  // States by the shortest way.
  void to_compute() {
    submit();
    schedule();
  }
  void to_push() {
    to_compute();
    grant(1);
    compute_all();
  }
  void to_commit() {
    to_push();
    prefill();
    done(1);
    done(1);
  }
  void second_router() { post(event::RouterConnected{kRouter + 1}); }
  void check_state(SenderState state) const { CHECK(sends(k) == state); }
};

// --- NONE

TEST(a_submit_with_a_receiver_meets_it_and_enqueues_a_sender_sequence) {
  Sending s;
  s.submit();
  CHECK_EQ(s.only<action::Meet>().address, "there:1");
  CHECK(s.only<action::EnqueueSequence>().role == Role::kSender);
  s.check_state(SenderState::kQueued);
}

TEST(a_submit_that_is_not_the_highest_attempt_is_fenced) {
  Sending s;
  s.from_router(message::Cancel{key_of_attempt(4)});
  s.submit();
  CHECK(s.only<message::Fenced>().key == k);
  CHECK(!s.did<action::EnqueueSequence>());
  CHECK(!s.sends(k).has_value());
}

TEST(a_submit_after_its_own_cancel_is_fenced) {
  Sending s;
  s.from_router(message::Cancel{k});
  s.submit();
  CHECK(s.did<message::Fenced>());
  CHECK(!s.did<action::EnqueueSequence>());
}

TEST(an_invalid_submit_fails_and_says_so_again_at_attach) {
  Sending s;
  event::FromRouter event;
  event.router_epoch = kRouter;
  event.body = message::Submit{spec_of(k), s.peer, ""};
  event.invalid = message::Failed{k, "InvalidRequestError", "token 9999 out of range", "prompt"};
  s.post(event);
  CHECK_EQ(s.only<message::Failed>().param, "prompt");
  CHECK(!s.did<action::EnqueueSequence>());
  s.from_router(message::Attach{{{k, 0, message::AttachRole::kSender}}});
  CHECK_EQ(s.only<message::Failed>().param, "prompt");
}

TEST(a_submit_over_the_limit_is_busy_and_forgotten) {
  Sending s;
  event::FromRouter event;
  event.router_epoch = kRouter;
  event.body = message::Submit{spec_of(k), s.peer, ""};
  event.queued_tokens = 100;
  event.max_queued_tokens = 100;
  s.post(event);
  CHECK_EQ(s.only<message::Busy>().limit, 100);
  CHECK(!s.sends(k).has_value());
}

TEST(a_submit_of_a_router_that_acknowledged_draining_is_busy) {
  Sending s;
  s.from_router(message::DrainingAcknowledged{});
  s.submit();
  CHECK(s.did<message::Busy>());
  CHECK(!s.did<action::EnqueueSequence>());
}

TEST(a_worker_that_drains_no_longer_takes_submits_again) {
  Sending s;
  s.from_router(message::DrainingAcknowledged{});
  s.post(event::DrainingEnded{});
  s.submit();
  CHECK(s.did<action::EnqueueSequence>());
}

TEST(a_doubled_submit_does_nothing) {
  Sending s;
  s.submit();
  s.submit();
  CHECK(s.out.empty());
}

// --- QUEUED

TEST(a_submit_without_a_receiver_runs_alone) {
  Sending s;
  s.from_router(message::Submit{spec_of(k), std::nullopt, ""});
  CHECK(s.only<action::EnqueueSequence>().role == Role::kAlone);
  s.check_state(SenderState::kLocal);
}

TEST(a_request_that_must_end_with_its_first_token_runs_alone) {
  Sending s;
  s.submit(8, 1);
  CHECK(s.only<action::EnqueueSequence>().role == Role::kAlone);
  CHECK(!s.did<action::Meet>());
  s.check_state(SenderState::kLocal);
}

TEST(a_reserve_is_sent_only_once_all_local_blocks_are_owned) {
  Sending s;
  s.submit();
  CHECK(!s.did<message::Reserve>());
  s.advance(5);
  CHECK(!s.did<message::Reserve>());
  s.schedule();
  CHECK(s.only<message::Reserve>().spec->key == k);
  s.check_state(SenderState::kCompute);
}

// --- COMPUTE

TEST(granted_pushes_what_is_computed_then_each_group_as_it_comes) {
  Sending s;
  s.to_compute();
  s.compute(0, 0, 8);
  CHECK(!s.did<action::PushLayers>());
  s.grant(1);
  const auto push = s.only<action::PushLayers>();
  CHECK_EQ(+push.header.first_layer, 0);
  CHECK_EQ(+push.header.num_layers, 2);
  CHECK_EQ(+push.header.tokens, 8u);
  CHECK_EQ(+push.header.grant, 1u);
  CHECK_EQ(+push.header.receiver_epoch, 2u);
  CHECK_EQ(push.blocks, std::vector<int32_t>({40, 41}));
  s.check_state(SenderState::kPush);
  s.compute(2, 0, 8);
  CHECK_EQ(+s.only<action::PushLayers>().header.first_layer, 2);
}

TEST(the_last_group_has_the_layers_that_are_left) {
  HandoverConfig config = bench_config();
  config.num_layers = 3;
  Sending s(config);
  s.to_compute();
  s.grant(1);
  s.compute(0, 0, 8);
  CHECK_EQ(+s.only<action::PushLayers>().header.num_layers, 2);
  s.post(event::LayersComputed{k, 2, 1, 0, 8});
  CHECK_EQ(+s.only<action::PushLayers>().header.first_layer, 2);
  CHECK_EQ(+s.only<action::PushLayers>().header.num_layers, 1);
}

TEST(pushes_begin_at_block_borders_and_hold_a_part_of_a_block_back_until_it_is_full_or_last) {
  Sending s;
  s.submit(11);
  s.schedule(11);
  s.grant(1);
  s.compute(0, 0, 6);
  CHECK_EQ(+s.only<action::PushLayers>().header.tokens, 4u);  // 4 of 6
  s.compute(0, 6, 5);
  const auto push = s.only<action::PushLayers>();
  CHECK_EQ(+push.header.first_token, 4u);
  CHECK_EQ(+push.header.tokens, 7u);  // 4…10, the prompt's end
  CHECK_EQ(push.blocks, std::vector<int32_t>({41, 42}));
}

TEST(a_long_run_of_tokens_becomes_several_pushes) {
  Sending s;
  s.submit(20);
  s.schedule(20);
  s.grant(1);
  s.compute(0, 0, 20);
  const auto pushes = s.all<action::PushLayers>();
  REQUIRE(pushes.size() == 3);
  CHECK_EQ(+pushes[1].header.first_token, 8u);
  CHECK_EQ(+pushes[2].header.tokens, 4u);
}

TEST(tokens_cached_here_are_pushed_and_tokens_cached_there_are_not) {
  Sending s;
  s.submit(12);
  s.schedule(12, 8);  // 0…7 are prefix hits here
  s.grant(1, 4);      // 0…3 are prefix hits there
  const auto pushes = s.all<action::PushLayers>();
  REQUIRE(pushes.size() == 2);  // two layer groups
  for (const auto& push : pushes) {
    CHECK_EQ(+push.header.first_token, 4u);
    CHECK_EQ(+push.header.tokens, 4u);
  }
}

TEST(silence_for_a_second_repeats_the_reserve) {
  Sending s;
  s.to_compute();
  s.advance(0.99);
  CHECK(!s.did<message::Reserve>());
  s.advance(0.01);
  CHECK(s.did<message::Reserve>());
  s.advance(1.0);
  CHECK(s.did<message::Reserve>());
}

TEST(reserves_that_nobody_answers_are_done_without_after_three) {
  Sending s;
  s.second_router();
  s.to_compute();
  s.compute_all();
  s.prefill();
  s.advance(1);
  s.advance(1);
  CHECK(s.did<message::Reserve>());
  s.advance(1);
  CHECK(!s.did<message::Reserve>());
  CHECK(s.did<message::Abort>());
  CHECK(s.did<message::Outputs>());
  CHECK(s.did<message::Released>());
}

TEST(an_answer_ends_the_silence) {
  Sending s;
  s.to_compute();
  s.advance(1);
  s.advance(1);
  s.grant(1);
  s.receive(message::Expired{k, 1});
  s.advance(1);
  s.advance(1);
  CHECK(s.did<message::Reserve>());
}

TEST(no_room_lets_the_prompt_go_on_to_its_end_and_then_be_released_without_its_first_token) {
  Sending s;
  s.to_compute();
  s.receive(message::NoRoom{k, "full"});
  s.check_state(SenderState::kCompute);
  s.advance(5);
  CHECK(!s.did<message::Reserve>());
  s.compute_all();
  s.prefill();
  CHECK(!s.did<message::Outputs>());  // its retry may wait: then nobody has seen a token yet
  CHECK(s.did<message::Released>());
  CHECK(s.did<action::ReleaseBlocks>());
  s.check_state(SenderState::kGone);
}

TEST(no_room_after_the_first_token_releases_without_it) {
  Sending s;
  s.second_router();
  s.to_compute();
  s.compute_all();
  s.prefill();
  s.receive(message::NoRoom{k, "full"});
  CHECK(!s.did<message::Outputs>());
  CHECK(s.did<message::Released>());
  s.from_router(message::Attach{{{k, 0, message::AttachRole::kSender}}});
  CHECK(!s.did<message::Outputs>());
}

TEST(a_first_token_that_went_out_with_an_earlier_grant_is_not_taken_back) {
  Sending s;
  s.to_commit();
  s.receive(message::Expired{k, 1});
  s.receive(message::NoRoom{k, "full"});
  CHECK(s.did<message::Released>());
  s.from_router(message::Attach{{{k, 0, message::AttachRole::kSender}}});
  CHECK_EQ(s.only<message::Outputs>().tokens.at(0).token, 9);
}

TEST(a_granted_that_cannot_be_right_is_aborted_and_done_without) {
  const auto check_refused = [](int32_t prefix_tokens, Seconds lease) {
    Sending s;
    s.to_compute();
    s.compute_all();
    s.receive(message::Granted{k, 1, prefix_tokens, lease});
    CHECK(!s.did<action::PushLayers>());
    CHECK_EQ(s.only<message::Abort>().grant, 1u);
    s.check_state(SenderState::kCompute);
    s.prefill();
    CHECK(s.only<message::Released>().reason.find("a grant that can't be") == 0);
    s.check_state(SenderState::kGone);
  };
  for (int32_t prefix : {-4, -1, 3, 9, 12, INT32_MAX, INT32_MIN}) check_refused(prefix, 5.0);
  for (Seconds lease : {0.0, -1.0, std::nan(""), -HUGE_VAL, HUGE_VAL}) check_refused(0, lease);
}

TEST(a_prefix_may_end_at_a_block_border_or_with_the_prompt) {
  for (int32_t prefix : {0, 4, 8, 10}) {
    Sending s;
    s.submit(10);
    s.schedule(10);
    s.grant(1, prefix);
    s.compute_all(10);
    s.check_state(SenderState::kPush);
  }
}

TEST(a_granted_after_no_room_is_aborted) {
  Sending s;
  s.to_compute();
  s.receive(message::NoRoom{k, "full"});
  s.grant(1);
  CHECK(s.did<message::Abort>());
  s.compute_all();
  CHECK(!s.did<action::PushLayers>());
}

TEST(a_granted_for_an_unknown_key_is_aborted) {
  Sending s;
  s.grant(1);
  CHECK(s.only<message::Abort>().key == k);
  CHECK_EQ(s.only<message::Abort>().grant, 1u);
}

TEST(an_abort_names_the_newest_grant_that_was_heard_of) {
  Sending early;
  early.to_compute();
  early.from_router(message::Cancel{k});
  CHECK_EQ(early.only<message::Abort>().grant, 0u);

  Sending late;
  late.to_compute();
  late.grant(7);
  late.from_router(message::Cancel{k});
  CHECK_EQ(late.only<message::Abort>().grant, 7u);
}

TEST(a_receiver_that_fences_or_is_lost_while_computing_is_done_without) {
  Sending fenced;
  fenced.to_push();
  fenced.receive(message::PeerFenced{k});
  fenced.check_state(SenderState::kCompute);
  fenced.prefill();
  CHECK(fenced.did<message::Outputs>());
  CHECK(fenced.did<message::Released>());

  Sending lost;
  lost.to_push();
  lost.post(event::ReceiverLost{lost.peer, "gone"});
  lost.check_state(SenderState::kCompute);
  lost.prefill();
  CHECK(lost.did<message::Released>());
  lost.check_state(SenderState::kFlush);  // two pushes are in flight
}

TEST(a_receiver_lost_while_the_request_is_queued_is_never_asked) {
  Sending s;
  s.submit();
  s.post(event::ReceiverLost{s.peer, "refused: layout"});
  s.schedule();
  CHECK(!s.did<message::Reserve>());
  s.compute_all();
  s.prefill();
  CHECK(s.did<message::Released>());
}

TEST(the_first_token_waits_for_the_answer_and_goes_out_with_the_grant) {
  Sending s;
  s.second_router();
  s.to_compute();
  s.compute_all();
  s.prefill();
  CHECK(s.out.empty());
  s.check_state(SenderState::kCompute);
  s.from_router(message::Attach{{{k, 0, message::AttachRole::kSender}}});
  CHECK(s.out.empty());
  s.grant(1);
  CHECK_EQ(s.only<message::Outputs>().tokens.at(0).token, 9);
  CHECK_EQ(s.all<action::PushLayers>().size(), 2u);
}

TEST(where_one_router_sees_all_slots_the_first_token_waits_for_nothing) {
  Sending s;
  s.to_compute();
  s.compute_all();
  s.prefill();
  CHECK_EQ(s.only<message::Outputs>().tokens.at(0).token, 9);
  s.check_state(SenderState::kCompute);
  s.grant(1);
  CHECK(!s.did<message::Outputs>());
  CHECK_EQ(s.all<action::PushLayers>().size(), 2u);
}

TEST(a_router_that_is_lost_may_have_work_at_the_receiver_until_it_expires) {
  Sending s;
  s.second_router();
  s.post(event::RouterLost{kRouter + 1});
  s.to_compute();
  s.compute_all();
  s.prefill();
  CHECK(!s.did<message::Outputs>());

  Sending alone;
  alone.second_router();
  alone.post(event::RouterLost{kRouter + 1});
  alone.advance(HandoverTimes{}.router_expiry + 1);
  alone.to_compute();
  alone.compute_all();
  alone.prefill();
  CHECK(alone.did<message::Outputs>());
}

TEST(once_granted_the_first_token_goes_out_at_once) {
  Sending s;
  s.to_push();
  s.prefill();
  CHECK_EQ(s.only<message::Outputs>().tokens.at(0).token, 9);
  s.check_state(SenderState::kPush);
}

TEST(a_first_token_between_two_grants_waits_for_the_second) {
  Sending s;
  s.second_router();
  s.to_push();
  s.receive(message::Expired{k, 1});
  s.prefill();
  CHECK(s.out.empty());
  s.done(1);
  s.done(1);
  s.check_state(SenderState::kCompute);
  s.grant(2);
  CHECK(s.did<message::Outputs>());
}

TEST(a_first_token_that_waits_goes_out_when_the_receiver_is_lost) {
  Sending s;
  s.second_router();
  s.to_compute();
  s.compute_all();
  s.prefill();
  s.post(event::ReceiverLost{s.peer, "gone"});
  CHECK(s.did<message::Outputs>());
  CHECK(s.did<message::Released>());
}

TEST(a_first_token_that_waits_is_dropped_by_a_cancel) {
  Sending s;
  s.second_router();
  s.to_compute();
  s.compute_all();
  s.prefill();
  s.from_router(message::Cancel{k});
  CHECK(!s.did<message::Outputs>());
  CHECK(s.did<message::Abort>());
  s.check_state(SenderState::kGone);
}

TEST(a_submit_that_names_its_own_worker_as_receiver_runs_alone) {
  Sending s;
  s.from_router(message::Submit{spec_of(k), s.self, "here:1"});
  CHECK(s.only<action::EnqueueSequence>().role == Role::kAlone);
  s.check_state(SenderState::kLocal);
}

TEST(a_first_token_that_finishes_aborts_the_reservation) {
  Sending s;
  s.to_push();
  s.prefill(FinishReason::kStop);
  CHECK(s.did<message::Outputs>());
  CHECK(s.did<message::Abort>());
  s.check_state(SenderState::kFlush);
  s.done(1);
  CHECK(!s.did<message::Commit>());
  CHECK(!s.did<action::ReleaseBlocks>());
  s.done(1);
  CHECK(s.did<action::ReleaseBlocks>());
  s.check_state(SenderState::kGone);
}

// --- PUSH, COMMIT

TEST(commit_waits_for_the_first_token_and_for_all_sends) {
  Sending s;
  s.to_push();
  s.done(1, true, 160, 5);
  CHECK(!s.did<message::Commit>());
  s.prefill();
  CHECK(!s.did<message::Commit>());
  s.done(1, true, 160, 7);
  const auto commit = s.only<message::Commit>();
  CHECK_EQ(commit.bytes, 320u);
  CHECK_EQ(commit.checksum, 12u);
  CHECK_EQ(commit.first.token, 9);
  s.check_state(SenderState::kCommit);
}

TEST(a_whole_prefix_hit_there_commits_without_a_push) {
  Sending s;
  s.to_compute();
  s.compute_all();
  s.prefill();
  s.grant(1, 8);
  CHECK(!s.did<action::PushLayers>());
  CHECK_EQ(s.only<message::Commit>().bytes, 0u);
}

TEST(silence_for_a_second_repeats_the_commit) {
  Sending s;
  s.to_commit();
  s.advance(1);
  CHECK_EQ(s.only<message::Commit>().grant, 1u);
}

TEST(committed_releases_the_blocks) {
  Sending s;
  s.to_commit();
  s.receive(message::PeerCommitted{k, 1});
  CHECK(s.did<action::ReleaseBlocks>());
  CHECK(!s.did<message::Released>());
  s.check_state(SenderState::kGone);
}

TEST(fenced_or_a_lost_receiver_after_commit_releases) {
  Sending fenced;
  fenced.to_commit();
  fenced.receive(message::PeerFenced{k});
  CHECK(fenced.did<message::Released>());
  fenced.check_state(SenderState::kGone);

  Sending lost;
  lost.to_commit();
  lost.post(event::ReceiverLost{lost.peer, "silence"});
  CHECK(lost.did<message::Released>());
}

// --- AWAIT

TEST(expired_for_the_current_grant_reserves_again_and_gives_the_old_one_up) {
  Sending s;
  s.to_commit();
  s.receive(message::Expired{k, 1});
  CHECK_EQ(s.only<message::Reserve>().given_up, 1u);
  s.check_state(SenderState::kCompute);
  s.grant(2);
  CHECK_EQ(s.all<action::PushLayers>().size(), 2u);  // what is computed stays
}

TEST(expired_for_an_older_grant_is_ignored) {
  Sending s;
  s.to_commit();
  s.receive(message::Expired{k, 0});
  CHECK(s.out.empty());
  s.check_state(SenderState::kCommit);
}

TEST(a_bad_checksum_reserves_again) {
  Sending s;
  s.to_commit();
  s.receive(message::BadChecksum{k, 1, 5, 6});
  CHECK(s.did<message::Reserve>());
}

TEST(await_lasts_until_the_sends_complete) {
  Sending s;
  s.to_push();
  s.receive(message::Expired{k, 1});
  s.check_state(SenderState::kAwait);
  s.done(1);
  CHECK(!s.did<message::Reserve>());
  s.done(1);
  CHECK(s.did<message::Reserve>());
}

TEST(await_closes_the_endpoint_after_a_second) {
  Sending s;
  s.to_push();
  s.receive(message::Expired{k, 1});
  s.advance(1);
  const auto close = s.only<action::CloseEndpoint>();
  CHECK(close.peer == s.peer);
  CHECK(close.direction == Direction::kSend);
  CHECK(!s.handover.next_deadline().has_value());  // what is in flight ends with the endpoint
  s.done(1, false);
  s.done(1, false);
  CHECK(s.did<message::Reserve>());
}

TEST(await_that_ended_in_time_closes_nothing) {
  Sending s;
  s.to_push();
  s.receive(message::Expired{k, 1});
  s.done(1);
  s.done(1);
  s.grant(2);
  s.advance(1);
  CHECK(!s.did<action::CloseEndpoint>());
  s.check_state(SenderState::kPush);
}

TEST(pushes_of_a_request_that_is_done_without_may_go_on_until_the_prompt_is) {
  Sending s;
  s.to_push();
  s.receive(message::Expired{k, 1});
  s.receive(message::PeerFenced{k});
  s.advance(1);
  CHECK(!s.did<action::CloseEndpoint>());
  s.prefill();
  CHECK(!s.did<action::ReleaseBlocks>());
  s.advance(1);
  CHECK(s.did<action::CloseEndpoint>());
}

TEST(a_broken_endpoint_with_a_live_receiver_reserves_again) {
  Sending s;
  s.to_commit();
  s.post(event::EndpointFailed{s.peer, Direction::kSend});
  CHECK(s.did<message::Reserve>());

  Sending failed;
  failed.to_push();
  failed.done(1, false);
  failed.check_state(SenderState::kAwait);
}

TEST(a_broken_endpoint_costs_a_grant_nothing_before_something_was_pushed_into_it) {
  Sending s;
  s.to_compute();
  s.grant(1);
  s.post(event::EndpointFailed{s.peer, Direction::kSend});
  s.check_state(SenderState::kPush);
  CHECK(!s.did<message::Reserve>());
}

TEST(closing_an_endpoint_for_one_sequence_makes_the_others_on_it_try_again) {
  Sending s;
  s.to_commit();
  const RequestKey other = key_of_attempt(1, 2);
  s.from_router(message::Submit{spec_of(other), s.peer, "there:1"});
  s.post(event::Scheduled{other, {50, 51}, 8, 8});
  s.receive(message::Granted{other, 2, 0, 5.0});
  s.from_router(message::Cancel{other});
  CHECK(s.sends(other) == SenderState::kFlush);
  s.now += 0.9;
  s.receive(message::PeerCommitted{other, 2});  // nothing to it; and no repeat of k's Commit yet
  s.now += 0.1;
  s.out.clear();
  s.post(event::Tick{});
  CHECK(s.did<action::CloseEndpoint>());
  CHECK(s.sends(k) == SenderState::kCompute);  // its bytes may have been on the way still
}

TEST(a_grant_that_replaces_ours_means_that_ours_is_void) {
  Sending s;
  s.to_commit();
  s.grant(2);
  CHECK_EQ(s.only<message::Reserve>().given_up, 1u);
  s.check_state(SenderState::kCompute);
  s.grant(2);
  s.check_state(SenderState::kPush);
}

TEST(an_answer_that_offers_the_given_up_grant_again_is_ignored) {
  Sending s;
  s.to_commit();
  s.receive(message::Expired{k, 1});
  s.grant(1);
  CHECK(s.out.empty());
  s.check_state(SenderState::kCompute);
}

TEST(the_third_grant_that_fails_releases) {
  Sending s;
  s.to_commit();
  for (GrantId id = 1; id <= 2; ++id) {
    s.receive(message::Expired{k, id});
    CHECK(s.did<message::Reserve>());
    s.grant(id + 1);
    s.done(id + 1);
    s.done(id + 1);
  }
  s.receive(message::Expired{k, 3});
  CHECK(!s.did<message::Reserve>());
  CHECK(s.did<message::Abort>());
  CHECK(s.did<message::Released>());
  s.check_state(SenderState::kGone);
}

TEST(posting_stops_half_a_second_before_the_lease_ends_by_our_own_count) {
  Sending s;
  s.to_compute();
  s.grant(1);
  s.compute(0, 0, 8);
  s.now += 4.5;
  s.compute(2, 0, 8);
  CHECK(!s.did<action::PushLayers>());
  s.check_state(SenderState::kAwait);
}

TEST(pushes_that_do_not_end_for_five_seconds_are_given_up) {
  Sending s;
  s.to_push();
  for (int i = 0; i < 4; ++i) {
    s.advance(1);
    s.post(event::HeartbeatDue{s.peer});
  }
  s.done(1);
  for (int i = 0; i < 4; ++i) {
    s.advance(1);
    s.post(event::HeartbeatDue{s.peer});
  }
  s.check_state(SenderState::kPush);
  s.advance(1);
  s.check_state(SenderState::kAwait);
}

TEST(a_heartbeat_lists_the_grants_counted_on_and_renews_them) {
  Sending s;
  s.to_compute();
  s.grant(1);
  s.now += 4;
  s.post(event::HeartbeatDue{s.peer});
  CHECK_EQ(s.only<message::SenderHeartbeat>().grants, std::vector<GrantId>({1}));
  s.advance(4);
  s.check_state(SenderState::kPush);
  s.receive(message::PeerFenced{k});
  s.post(event::HeartbeatDue{s.peer});
  CHECK(s.only<message::SenderHeartbeat>().grants.empty());
}

TEST(committed_counts_in_every_state_that_has_reserved) {
  Sending s;
  s.to_commit();
  s.receive(message::Expired{k, 1});
  s.check_state(SenderState::kCompute);
  s.receive(message::PeerCommitted{k, 1});
  s.check_state(SenderState::kGone);
}

// --- LOCAL

TEST(a_local_sequence_is_remembered_with_its_tokens_when_it_finishes) {
  Sending s;
  s.from_router(message::Submit{spec_of(k), std::nullopt, ""});
  SampledToken token;
  for (token.position = 0; token.position < 3; ++token.position) s.post(event::Output{k, token});
  s.post(event::Finished{k, FinishReason::kLength});
  CHECK(s.out.empty());
  s.check_state(SenderState::kGone);
  token.position = 3;  // was on its way
  s.post(event::Output{k, token});
  s.from_router(message::Attach{{{k, 1, message::AttachRole::kAlone}}});
  const auto replay = s.only<message::Outputs>();
  REQUIRE(replay.tokens.size() == 3);
  CHECK_EQ(replay.tokens.front().position, 1);
}

TEST(an_attach_replays_what_runs_here_from_the_next_position) {
  Sending alone;
  alone.from_router(message::Submit{spec_of(k), std::nullopt, ""});
  SampledToken token;
  for (token.position = 0; token.position < 3; ++token.position) alone.post(event::Output{k, token});
  alone.from_router(message::Attach{{{k, 2, message::AttachRole::kAlone}}});
  REQUIRE(alone.only<message::Outputs>().tokens.size() == 1);
  CHECK_EQ(alone.only<message::Outputs>().tokens[0].position, 2);

  Sending sender;
  sender.second_router();
  sender.to_compute();
  sender.prefill();
  sender.from_router(message::Attach{{{k, 0, message::AttachRole::kSender}}});
  CHECK(sender.out.empty());  // its first token waits for the answer
  sender.grant(1);
  CHECK(sender.did<message::Outputs>());
  sender.from_router(message::Attach{{{k, 0, message::AttachRole::kSender}}});
  CHECK_EQ(sender.only<message::Outputs>().tokens.size(), 1);
  sender.from_router(message::Attach{{{k, 1, message::AttachRole::kSender}}});
  CHECK(sender.out.empty());
}

TEST(a_local_sequence_that_the_engine_gives_up_is_fenced) {
  Sending s;
  s.from_router(message::Submit{spec_of(k), std::nullopt, ""});
  s.post(event::Finished{k, FinishReason::kCancelled});
  CHECK(s.did<message::Fenced>());
}

TEST(a_sender_sequence_that_the_engine_gives_up_is_fenced_and_aborted) {
  Sending s;
  s.to_push();
  s.post(event::Finished{k, FinishReason::kCancelled});
  CHECK(s.did<message::Fenced>());
  CHECK(s.did<message::Abort>());
  s.check_state(SenderState::kFlush);
  s.advance(1);
  CHECK(s.did<action::CloseEndpoint>());  // its pushes don't end

  Sending prefilled;
  prefilled.to_commit();
  prefilled.post(event::Finished{k, FinishReason::kCancelled});
  prefilled.check_state(SenderState::kCommit);
}

TEST(a_sequence_that_is_refused_though_it_has_blocks_gives_them_back) {
  Sending s;
  s.to_compute();
  s.post(event::Rejected{{k, "InvalidRequestError", "is here already", ""}});
  CHECK(s.did<message::Failed>());
  CHECK(s.did<action::CancelSequence>());
  CHECK(s.did<action::ReleaseBlocks>());
  CHECK(s.handover.idle());
}

TEST(a_sequence_that_the_engine_refuses_fails) {
  Sending s;
  s.submit();
  s.post(event::Rejected{{k, "InvalidRequestError", "too long", "prompt"}});
  CHECK(s.did<message::Failed>());
  s.check_state(SenderState::kGone);
}

// --- any

TEST(cancel_stops_posting_aborts_and_flushes) {
  Sending s;
  s.to_compute();
  s.grant(1);
  s.compute(0, 0, 8);
  s.from_router(message::Cancel{k});
  CHECK(s.did<message::Abort>());
  CHECK(s.did<action::CancelSequence>());
  s.check_state(SenderState::kFlush);
  s.compute(2, 0, 8);
  CHECK(!s.did<action::PushLayers>());
  s.done(1);
  CHECK(s.did<action::ReleaseBlocks>());
}

TEST(cancel_before_a_reserve_aborts_nothing) {
  Sending s;
  s.submit();
  s.from_router(message::Cancel{k});
  CHECK(!s.did<message::Abort>());
  CHECK(s.did<action::CancelSequence>());
  CHECK(s.did<action::ReleaseBlocks>());
}

TEST(a_higher_attempt_ends_a_lower_one) {
  Sending s;
  s.to_push();
  s.from_router(message::Submit{spec_of(key_of_attempt(4)), std::nullopt, ""});
  CHECK(s.did<action::CancelSequence>());
  s.check_state(SenderState::kFlush);
}

TEST(another_choice_or_request_is_no_higher_attempt) {
  Sending s;
  s.to_push();
  s.from_router(message::Submit{spec_of({kRouter, 1, 1, 9}), std::nullopt, ""});
  s.from_router(message::Submit{spec_of({kRouter, 2, 0, 9}), std::nullopt, ""});
  s.check_state(SenderState::kPush);
}

TEST(a_router_that_expired_ends_its_sequences_and_no_other_router_s) {
  Sending s;
  s.to_compute();
  const RequestKey other{88, 1, 0, 0};
  s.post(event::RouterConnected{88});
  event::FromRouter event;
  event.router_epoch = 88;
  event.body = message::Submit{spec_of(other), std::nullopt, ""};
  s.post(event);
  s.post(event::RouterLost{kRouter});
  s.advance(9.9);
  s.check_state(SenderState::kCompute);
  s.advance(0.1);
  s.check_state(SenderState::kGone);
  CHECK(s.sends(other) == SenderState::kLocal);
  s.from_router(message::Attach{{{k, 0, message::AttachRole::kSender}}});
  CHECK(s.did<message::Fenced>());
}

TEST(a_router_that_comes_back_in_time_does_not_expire) {
  Sending s;
  s.to_compute();
  s.post(event::RouterLost{kRouter});
  s.advance(9);
  s.post(event::RouterConnected{kRouter});
  s.advance(9);
  s.check_state(SenderState::kCompute);
}

// --- FLUSH, GONE

TEST(flush_holds_the_blocks_until_the_sends_complete_and_closes_the_endpoint_after_a_second) {
  Sending s;
  s.to_push();
  s.from_router(message::Cancel{k});
  CHECK(!s.did<action::ReleaseBlocks>());
  s.advance(1);
  CHECK(s.did<action::CloseEndpoint>());
  CHECK(!s.did<action::ReleaseBlocks>());
  s.done(1, false);
  s.done(1, false);
  CHECK(s.did<action::ReleaseBlocks>());
  s.post(event::EndpointClosed{s.peer, Direction::kSend});
  CHECK(s.handover.idle());
}

TEST(what_the_receiver_says_while_flushing_or_before_a_reserve_is_nothing_to_it) {
  Sending s;
  s.submit();
  s.receive(message::PeerFenced{k});
  s.schedule();
  CHECK(s.did<message::Reserve>());
  s.grant(1);
  s.compute_all();
  s.from_router(message::Cancel{k});
  const std::vector<message::FromReceiver> said = {message::PeerFenced{k}, message::PeerCommitted{k, 1},
                                                   message::Expired{k, 1}};
  for (const message::FromReceiver& body : said) {
    s.receive(body);
    s.check_state(SenderState::kFlush);
    CHECK(s.out.empty());
  }
}

TEST(a_first_token_that_comes_while_flushing_or_again_is_said_to_nobody) {
  Sending s;
  s.to_push();
  s.from_router(message::Cancel{k});
  s.prefill();
  CHECK(s.out.empty());

  Sending twice;
  twice.to_push();
  twice.prefill();
  twice.prefill();
  CHECK(twice.out.empty());
}

TEST(that_the_engine_has_cancelled_as_it_was_asked_is_said_to_nobody) {
  Sending s;
  s.to_push();
  s.from_router(message::Cancel{k});
  s.post(event::Finished{k, FinishReason::kCancelled});
  CHECK(s.out.empty());
  s.check_state(SenderState::kFlush);
}

TEST(another_worker_has_no_say_in_a_handover) {
  Sending s;
  s.to_push();
  const WorkerKey other{"other", 3};
  s.post(event::FromReceiver{other, message::PeerFenced{k}});
  s.check_state(SenderState::kPush);
  CHECK(s.out.empty());
  s.post(event::FromReceiver{other, message::Granted{k, 9, 0, 5.0}});
  s.check_state(SenderState::kPush);
  CHECK(s.only<action::ToReceiver>().receiver == other);
  CHECK_EQ(s.only<message::Abort>().grant, 9);
}

TEST(a_receiver_lost_while_flushing_changes_nothing) {
  Sending s;
  s.to_push();
  s.from_router(message::Cancel{k});
  s.post(event::ReceiverLost{s.peer, "silent"});
  s.check_state(SenderState::kFlush);
  s.done(1, false);
  s.done(1, false);
  CHECK(s.did<action::ReleaseBlocks>());
}

TEST(a_receiver_lost_before_the_prompt_is_scheduled_leaves_it_queued) {
  Sending s;
  s.submit();
  s.post(event::ReceiverLost{s.peer, "silent"});
  s.check_state(SenderState::kQueued);
  s.schedule();
  s.check_state(SenderState::kCompute);
  CHECK(s.out.empty());
  s.prefill();
  CHECK(s.did<message::Released>());
}

TEST(a_late_no_room_ends_no_grant) {
  Sending s;
  s.to_push();
  s.receive(message::NoRoom{k, "late"});
  s.check_state(SenderState::kPush);
  s.prefill();
  s.done(1);
  s.done(1);
  s.check_state(SenderState::kCommit);
}

TEST(committed_before_the_first_token_ends_nothing) {
  Sending s;
  s.to_push();
  s.receive(message::PeerCommitted{k, 1});
  s.check_state(SenderState::kPush);
  s.prefill();
  CHECK(s.did<message::Outputs>());
}

TEST(a_cancel_while_flushing_says_nothing_and_puts_nothing_off) {
  Sending s;
  s.to_push();
  s.from_router(message::Cancel{k});
  CHECK(s.did<action::CancelSequence>());
  s.now += 0.9;
  s.from_router(message::Cancel{k});
  CHECK(s.out.empty());
  s.advance(0.1);
  CHECK(s.did<action::CloseEndpoint>());
}

TEST(a_cancel_after_the_first_token_has_no_sequence_to_end) {
  Sending s;
  s.to_commit();
  s.from_router(message::Cancel{k});
  CHECK(!s.did<action::CancelSequence>());
  CHECK(s.did<action::ReleaseBlocks>());
}

TEST(an_endpoint_that_is_closing_is_asked_again_for_what_came_later) {
  Sending s;
  s.to_push();
  s.from_router(message::Cancel{k});
  s.advance(1);
  const RequestKey other = key_of_attempt(1, 2);
  s.from_router(message::Submit{spec_of(other), s.peer, "there:1"});
  s.post(event::Scheduled{other, {50, 51}, 8, 8});
  s.receive(message::Granted{other, 2, 0, 5.0});
  s.from_router(message::Cancel{other});
  s.advance(1);
  CHECK(!s.did<action::CloseEndpoint>());  // the first is still under way
  s.done(1, false);
  s.done(1, false);
  s.post(event::EndpointClosed{s.peer, Direction::kSend});
  s.advance(1);
  CHECK(s.did<action::CloseEndpoint>());
}

TEST(what_is_gone_keeps_its_tokens_and_not_its_prompt) {
  Sending s;
  auto spec = spec_of(k, 8, 3);
  const std::weak_ptr<const SequenceSpec> prompt = spec;
  s.from_router(message::Submit{std::move(spec), s.peer, "there:1"});
  s.out.clear();
  s.schedule(11);
  s.out.clear();
  CHECK(!prompt.expired());
  s.post(event::ReceiverLost{s.peer, "gone"});
  SampledToken first{.position = 3, .token = 9};
  s.post(event::Prefilled{k, first});
  s.check_state(SenderState::kGone);
  s.out.clear();
  CHECK(prompt.expired());
  s.from_router(message::Attach{{{k, 0, message::AttachRole::kSender}}});
  CHECK_EQ(s.only<message::Outputs>().tokens.at(0).position, 3);
}

TEST(gone_repeats_its_last_notice_and_tokens_for_a_minute) {
  Sending s;
  s.to_compute();
  s.post(event::ReceiverLost{s.peer, "gone"});
  s.prefill();
  s.advance(59);
  s.from_router(message::Attach{{{k, 0, message::AttachRole::kSender}}});
  CHECK(s.did<message::Outputs>());
  CHECK(s.did<message::Released>());
  s.advance(1);
  CHECK(!s.sends(k).has_value());
  s.from_router(message::Attach{{{k, 0, message::AttachRole::kSender}}});
  CHECK(s.did<message::Fenced>());
}

TEST(a_push_done_that_nobody_posted_breaks_the_contract) {
  Sending s;
  s.to_compute();
  CHECK_THROWS(s.done(1), ContractBroken);
}

TEST(a_sequence_is_counted_in_the_state_that_it_is_in_and_no_other) {
  const auto counted = [](auto lead_to) {
    Sending s;
    lead_to(s);
    CHECK(!s.handover.idle());
    const SenderCounts c = s.handover.counts().sender;
    return std::vector{c.queued, c.computing, c.pushing, c.awaiting, c.committing, c.local, c.flushing};
  };
  using Counts = std::vector<int64_t>;
  CHECK_EQ(counted([](Sending& s) { s.submit(); }), (Counts{1, 0, 0, 0, 0, 0, 0}));
  CHECK_EQ(counted([](Sending& s) { s.to_compute(); }), (Counts{0, 1, 0, 0, 0, 0, 0}));
  CHECK_EQ(counted([](Sending& s) { s.to_push(); }), (Counts{0, 0, 1, 0, 0, 0, 0}));
  CHECK_EQ(counted([](Sending& s) { s.to_push(), s.receive(message::Expired{k, 1}); }), (Counts{0, 0, 0, 1, 0, 0, 0}));
  CHECK_EQ(counted([](Sending& s) { s.to_commit(); }), (Counts{0, 0, 0, 0, 1, 0, 0}));
  CHECK_EQ(counted([](Sending& s) { s.from_router(message::Submit{spec_of(k), std::nullopt, ""}); }),
           (Counts{0, 0, 0, 0, 0, 1, 0}));
  CHECK_EQ(counted([](Sending& s) { s.to_push(), s.from_router(message::Cancel{k}); }), (Counts{0, 0, 0, 0, 0, 0, 1}));
}

TEST(counts_read_zero_at_rest) {
  Sending s;
  s.to_push();
  CHECK_EQ(s.handover.counts().sender.pushes_in_flight, 2);
  CHECK_EQ(s.handover.counts().sender.source_blocks, 2);
  CHECK(!s.handover.idle());
  s.prefill();
  s.done(1);
  s.done(1);
  s.receive(message::PeerCommitted{k, 1});
  CHECK(s.handover.idle());
  CHECK_EQ(s.handover.counts().sender.remembered, 1);
}

}  // namespace
}  // namespace rtp_llm
