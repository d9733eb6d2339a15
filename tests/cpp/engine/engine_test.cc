// The engine's promises besides bits: ends, errors, cancel, release, counters.
#include "engine/engine.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>

#include "check.h"
#include "rig.h"
#include "transfer/invalid_request.h"

namespace rtp_llm {
namespace {

using testing::Answer;
using testing::key_of;
using testing::random_tokens;
using testing::Rig;
using testing::RigOptions;
using testing::spec_of;

TEST(a_stop_id_and_an_eos_id_end_the_answer_with_their_token) {
  Rig plain;
  const SequenceSpec spec = spec_of(1, random_tokens(10, 2), 30);
  const Answer whole = plain.run_one(spec);
  const int32_t ender = whole.tokens[7];
  const auto at = std::find(whole.tokens.begin(), whole.tokens.end(), ender) - whole.tokens.begin();

  SequenceSpec stopped = spec;
  stopped.key = key_of(2);
  stopped.sampling.seed = spec.sampling.seed;
  stopped.sampling.stop_token_ids = {ender};
  const Answer stop = plain.run_one(stopped);
  CHECK(stop.finish == FinishReason::kStop);
  CHECK_EQ(stop.tokens.size(), at + 1);

  RigOptions with_eos;
  with_eos.engine.eos_token_ids = {ender};
  Rig rig(with_eos);
  const Answer ended = rig.run_one(spec);
  CHECK(ended.finish == FinishReason::kStop);
  CHECK_EQ(ended.tokens.size(), at + 1);
  SequenceSpec ignoring = stopped;
  ignoring.sampling.stop_token_ids = {};
  ignoring.sampling.ignore_eos = true;
  CHECK(rig.run_one(ignoring).tokens == whole.tokens);
}

TEST(no_step_begins_in_a_pause_and_the_answer_is_the_same_afterwards) {
  for (const bool queued : {false, true}) {
    Rig plain;
    const SequenceSpec spec = spec_of(1, random_tokens(40, 2), 60);
    const Answer undisturbed = plain.run_one(spec);

    Rig rig({.queued = queued, .delay_seed = 7});
    rig.engine->add(spec, Role::kAlone);
    rig.at_outputs = [&] { rig.engine->pause(); };
    rig.start();
    while (!rig.engine->load().paused) std::this_thread::yield();
    const EngineLoad at_rest = rig.engine->load();
    CHECK_EQ(at_rest.running, 1);
    const SequenceSpec later = spec_of(2, random_tokens(10, 3), 8);
    rig.engine->add(later, Role::kAlone);
    rig.engine->cancel(key_of(3));  // so that there is something to wait for: nobody has this key
    while (rig.engine->load().queued_tokens == 0) std::this_thread::yield();
    CHECK_EQ(rig.engine->load().steps, at_rest.steps);
    CHECK(rig.engine->load().paused);
    rig.engine->resume();
    CHECK(rig.wait_for(spec.key) == undisturbed);
    CHECK_EQ(rig.wait_for(later.key).tokens.size(), 8);
    CHECK(!rig.engine->load().paused);
    rig.check_idle();
  }
}

TEST(a_cancel_is_obeyed_in_a_pause) {
  Rig rig;
  const SequenceSpec spec = spec_of(1, random_tokens(40, 2), 200);
  rig.engine->add(spec, Role::kAlone);
  rig.at_outputs = [&] { rig.engine->pause(); };
  rig.start();
  while (!rig.engine->load().paused) std::this_thread::yield();
  rig.engine->cancel(spec.key);
  rig.ear.wait([&] { return rig.ear.finished.contains(spec.key); });
  rig.check_idle();
  rig.engine->resume();
  CHECK_EQ(rig.run_one(spec_of(2, random_tokens(10, 2), 5)).tokens.size(), 5);
}

TEST(what_is_given_up_ends_as_cancelled_and_leaves_nothing) {
  Rig rig;
  const SequenceSpec running = spec_of(1, random_tokens(40, 2), 200), waiting = spec_of(2, random_tokens(10, 3), 8);
  rig.engine->add(running, Role::kAlone);
  rig.at_outputs = [&] { rig.engine->pause(); };
  rig.start();
  while (!rig.engine->load().paused) std::this_thread::yield();
  rig.engine->add(waiting, Role::kAlone);
  rig.engine->add(spec_of(4, random_tokens(20, 4), 8), Role::kSender);
  rig.engine->give_up_all();
  rig.ear.wait([&] { return rig.ear.finished.size() == 3; });
  for (const auto& [key, finish] : rig.ear.finished) CHECK(finish == FinishReason::kCancelled);
  CHECK(rig.engine->load().paused);
  rig.check_idle();
}

TEST(min_tokens_keeps_eos_and_stop_ids_out_until_then) {
  RigOptions options;
  std::vector<int32_t> half;  // of the vocabulary: an answer would end soon
  for (int32_t id = 0; id < 30; ++id) half.push_back(id * 3);
  options.engine.eos_token_ids = half;
  Rig rig(options);
  SequenceSpec spec = spec_of(1, random_tokens(10, 2), 60);
  spec.sampling.min_tokens = 25;
  const Answer answer = rig.run_one(spec);
  CHECK(answer.tokens.size() >= 26);
  for (int i = 0; i < 25; ++i) CHECK(std::ranges::find(half, answer.tokens[i]) == half.end());
  spec.key = key_of(2);
  spec.sampling.stop_token_ids = {1, 2, 4};
  CHECK_THROWS_WITH(rig.engine->add(spec, Role::kAlone), InvalidArgument, "at most 32, got 33");
}

TEST(a_long_list_of_stop_ids_is_refused_at_once) {
  Rig rig;
  SequenceSpec spec = spec_of(1, random_tokens(10, 2));
  spec.sampling.min_tokens = 1;
  spec.sampling.stop_token_ids.resize(1'300'000);
  for (size_t i = 0; i < spec.sampling.stop_token_ids.size(); ++i)
    spec.sampling.stop_token_ids[i] = static_cast<int32_t>(i);
  spec.prompt[0] = -1;  // named first if the lists were walked before their lengths are known
  CHECK_THROWS_WITH(rig.engine->validate(spec, Role::kAlone), InvalidArgument,
                    "stop_token_ids must have at most 128 ids, got 1300000");
  spec.prompt[0] = 1;
  spec.sampling.stop_token_ids.assign(128, 5);  // repeats count once
  rig.engine->validate(spec, Role::kAlone);
}

TEST(an_answer_ends_at_max_model_len) {
  Rig rig;
  const Answer answer = rig.run_one(spec_of(1, random_tokens(250, 2), 100));
  CHECK_EQ(answer.tokens.size(), 6);
  CHECK(answer.finish == FinishReason::kLength);
}

TEST(a_bad_request_is_refused_by_field_and_value_and_disturbs_nobody) {
  RigOptions options;
  options.engine.num_kv_blocks = 10;
  Rig rig(options);
  const SequenceSpec good = spec_of(1, random_tokens(20, 1));
  rig.engine->add(good, Role::kAlone);
  const auto refused = [&](auto change, const char* param, const char* text, const char* type = "InvalidRequestError") {
    SequenceSpec bad = spec_of(2, random_tokens(20, 2));
    change(bad);
    try {
      rig.engine->add(bad, Role::kAlone);
    } catch (const InvalidRequest& error) {
      CHECK_EQ(error.param(), param);
      CHECK_EQ(error.type(), type);
    } catch (const InvalidArgument&) {
      CHECK_EQ(param, std::string());
    }
    CHECK_THROWS_WITH(rig.engine->add(bad, Role::kAlone), InvalidArgument, text);
  };
  const char* too_long = "PromptTooLongError";
  refused([](SequenceSpec& s) { s.prompt = {}; }, "prompt", "prompt must have at least one token");
  refused([](SequenceSpec& s) { s.prompt[3] = 101; }, "prompt",
          "prompt[3] = 101 is out of range, the vocabulary has 101 tokens");
  refused([](SequenceSpec& s) { s.prompt[0] = -1; }, "prompt", "prompt[0] = -1");
  refused([](SequenceSpec& s) { s.prompt.resize(256); }, "prompt",
          "prompt of 256 tokens is too long, max_model_len is 256", too_long);
  refused([](SequenceSpec& s) { s.sampling.stop_token_ids = {500}; }, "stop_token_ids", "stop_token_ids[0] = 500");
  refused([](SequenceSpec& s) { s.sampling.temperature = -0.5f; }, "temperature",
          "temperature must be at least 0, got -0.5");
  refused([](SequenceSpec& s) { s.sampling.top_p = 0; }, "top_p", "top_p must be greater than 0 and at most 1, got 0");
  refused([](SequenceSpec& s) { s.sampling.min_p = 2; }, "min_p", "min_p must be at least 0 and at most 1, got 2");
  refused([](SequenceSpec& s) { s.sampling.top_k = -1; }, "top_k", "top_k must be at least 0, got -1");
  refused([](SequenceSpec& s) { s.sampling.max_tokens = 0; }, "max_tokens", "max_tokens must be at least 1, got 0");
  refused([](SequenceSpec& s) { s.sampling.allowed_token_ids = {5, 101}; }, "allowed_token_ids",
          "allowed_token_ids[1] = 101 is out of range, the vocabulary has 101 tokens");
  refused([](SequenceSpec& s) { s.sampling.allowed_token_ids.resize(65'537); }, "allowed_token_ids",
          "allowed_token_ids must have at most 65536 ids, got 65537");
  refused([](SequenceSpec& s) { s.sampling.logit_bias = {{-1, 1.0f}}; }, "logit_bias",
          "logit_bias of token -1 is out of range, the vocabulary has 101 tokens");
  refused([](SequenceSpec& s) { s.sampling.logit_bias = {{7, 100.5f}}; }, "logit_bias",
          "logit_bias of token 7 must be from -100 to 100, got 100.5");
  refused([](SequenceSpec& s) { s.sampling.logit_bias = {{7, NAN}}; }, "logit_bias", "got nan");
  refused(
      [](SequenceSpec& s) {
        for (int32_t id = 0; id <= kMaxTokenBiases; ++id) s.sampling.logit_bias[id] = 1.0f;
      },
      "logit_bias", "logit_bias must have at most 1024 tokens, got 1025");
  for (const float penalty : {-0.5f, NAN, INFINITY})
    refused([&](SequenceSpec& s) { s.sampling.repetition_penalty = penalty; }, "repetition_penalty",
            "repetition_penalty must be greater than 0, got");
  for (const float penalty : {-2.5f, 2.5f, NAN}) {
    refused([&](SequenceSpec& s) { s.sampling.presence_penalty = penalty; }, "presence_penalty",
            "presence_penalty must be from -2 to 2, got");
    refused([&](SequenceSpec& s) { s.sampling.frequency_penalty = penalty; }, "frequency_penalty",
            "frequency_penalty must be from -2 to 2, got");
  }
  refused(
      [](SequenceSpec& s) {
        s.sampling.min_tokens = 1;
        s.sampling.stop_token_ids = {8, 4, 6};
        s.sampling.allowed_token_ids = {4, 8, 4};
      },
      "min_tokens", "none of the 3 allowed_token_ids is left");
  refused([](SequenceSpec& s) { s.sampling.min_tokens = 21; }, "min_tokens",
          "min_tokens must be from 0 to max_tokens 20, got 21");
  refused([](SequenceSpec& s) { s.sampling.logprobs = 21; }, "logprobs", "logprobs must be at most 20, got 21");
  refused([](SequenceSpec& s) { s.output.resize(20); }, "max_tokens", "output has 20 tokens already, max_tokens is 20");
  refused([](SequenceSpec& s) { s.sampling.max_tokens = 200; }, "max_tokens",
          "need 14 KV blocks of 16 tokens, the pool has 10", too_long);
  refused([](SequenceSpec& s) { s.key = key_of(1); }, "", "is here already");
  rig.start();
  CHECK_EQ(rig.wait_for(good.key).tokens.size(), 20);
  rig.check_idle();
}

TEST(a_cancelled_sequence_ends_within_a_chunk_and_leaves_nothing) {
  Rig rig;
  rig.start();
  const SequenceSpec spec = spec_of(1, random_tokens(20, 1), 200);
  rig.engine->add(spec, Role::kAlone);
  rig.wait_for_tokens(spec.key, 3);
  rig.engine->cancel(spec.key);
  rig.ear.wait([&] { return rig.ear.finished.contains(spec.key); });
  CHECK(rig.ear.finished[spec.key] == FinishReason::kCancelled);
  rig.check_idle();
  rig.engine->cancel(key_of(77));  // unknown: ignored
  CHECK_EQ(rig.run_one(spec_of(2, {1, 2})).tokens.size(), 20);
}

// `busy` takes the one slot and goes on undisturbed, whatever happens to who waits behind it.
struct OneSlot {
  OneSlot() {
    RigOptions options;
    options.engine.max_num_seqs = 1;
    rig = std::make_unique<Rig>(options);
    rig->start();
    rig->engine->add(busy, Role::kAlone);
    rig->wait_for_tokens(busy.key, 2);
  }
  void cancel(const SequenceSpec& spec) {
    rig->engine->cancel(spec.key);
    rig->ear.wait([&] { return rig->ear.finished.contains(spec.key); });
    CHECK(rig->ear.finished[spec.key] == FinishReason::kCancelled);
    CHECK(rig->answers[spec.key].tokens.empty());
  }
  void finish() {
    const Answer answer = rig->wait_for(busy.key);
    rig->ear.wait([&] { return rig->ear.finished.contains(busy.key); });
    rig->engine->check_idle();
    CHECK(answer == Rig().run_one(busy));
  }

  const SequenceSpec busy = spec_of(9, random_tokens(10, 1), 200);
  std::unique_ptr<Rig> rig;
};

TEST(a_sequence_that_is_cancelled_while_it_waits_never_runs) {
  OneSlot one;
  for (const Role role : {Role::kAlone, Role::kSender}) {
    const SequenceSpec spec = spec_of(role == Role::kAlone ? 1 : 2, random_tokens(40, 4));
    one.rig->engine->add(spec, role);
    one.cancel(spec);
  }
  one.finish();
  CHECK_EQ(one.rig->engine->load().prompt_tokens_computed, 10);
}

TEST(a_joined_sequence_that_is_cancelled_before_its_first_step_gives_back_blocks_and_slot) {
  Rig rig;
  SequenceSpec spec = spec_of(1, random_tokens(40, 4));
  spec.output = {5};
  REQUIRE(rig.engine->slot_pool().grant(spec.key.router_epoch));
  const auto blocks = rig.engine->block_pool().grant(4).value();
  rig.engine->block_pool().granted_to_referenced(blocks);
  rig.engine->join(spec, blocks);
  rig.engine->cancel(spec.key);
  rig.start();
  rig.ear.wait([&] { return rig.ear.finished.contains(spec.key); });
  CHECK(rig.ear.finished[spec.key] == FinishReason::kCancelled);
  CHECK(rig.answers[spec.key].tokens.empty());
  rig.check_idle();
}

TEST(a_preempted_sequence_may_be_cancelled_and_the_other_goes_on) {
  RigOptions options;
  options.engine.num_kv_blocks = 16;
  Rig rig(options);
  const SequenceSpec first = spec_of(1, random_tokens(100, 1), 120), second = spec_of(2, random_tokens(100, 2), 120);
  rig.engine->add(first, Role::kAlone);
  rig.engine->add(second, Role::kAlone);
  rig.start();
  rig.collect_until([&] { return rig.engine->load().preemptions > 0; });
  rig.engine->cancel(second.key);
  rig.ear.wait([&] { return rig.ear.finished.contains(second.key); });
  CHECK(rig.ear.finished[second.key] == FinishReason::kCancelled);
  CHECK(rig.wait_for(first.key) == Rig().run_one(first));
  rig.ear.wait([&] { return rig.ear.finished.contains(first.key); });
  rig.engine->check_idle();
}

TEST(bytes_of_an_earlier_owner_are_gone_from_a_block_that_is_not_full) {
  RigOptions options;
  options.engine.num_kv_blocks = 20;
  Rig rig(options);
  BlockPool& pool = rig.engine->block_pool();
  const int64_t block_bytes = rig.engine->kv_layout().groups[0].block_bytes();
  const auto address = [&](int32_t block) {
    return static_cast<uint8_t*>(rig.engine->kv_pool_base()) + block * block_bytes;
  };
  const auto all = pool.allocate(20).value();
  std::vector<uint8_t> bytes(static_cast<size_t>(block_bytes), 0xff);  // NaN
  for (const int32_t block : all) rig.device->copy(address(block), bytes.data(), block_bytes);
  pool.release(all);
  const SequenceSpec spec = spec_of(1, random_tokens(20, 1), 1);  // a block and four tokens of a second one
  rig.engine->add(spec, Role::kSender);
  rig.start();
  rig.ear.wait([&] { return rig.ear.prefilled.contains(spec.key); });
  const std::vector<int32_t> blocks = rig.ear.scheduled[spec.key].blocks;
  REQUIRE(blocks.size() == 2);
  rig.device->copy(bytes.data(), address(blocks[1]), block_bytes);
  CHECK(std::ranges::count(bytes, uint8_t{0}) >= block_bytes * 12 / 16);
}

TEST(a_cancelled_sender_keeps_its_blocks_until_it_is_released) {
  RigOptions options;
  options.engine.max_num_batched_tokens = 1;
  Rig rig(options);
  const SequenceSpec spec = spec_of(1, random_tokens(200, 1));
  rig.engine->add(spec, Role::kSender);
  rig.ear.at_layers = [&] { rig.engine->cancel(spec.key); };
  rig.start();
  rig.ear.wait([&] { return rig.ear.finished.contains(spec.key); });
  CHECK(rig.ear.finished[spec.key] == FinishReason::kCancelled);
  CHECK(!rig.ear.prefilled.contains(spec.key));
  CHECK_EQ(rig.ear.pieces[spec.key].size(), 2);  // both layer groups of the chunk under way, and no chunk more
  CHECK_EQ(rig.engine->load().blocks.referenced, 13);
  rig.engine->release(spec.key);
  rig.engine->release(spec.key);  // idempotent
  rig.run_one(spec_of(2, {1}, 1));
  rig.check_idle();
}

TEST(a_request_waits_while_a_grant_holds_the_blocks_and_runs_when_they_are_free) {
  RigOptions options;
  options.engine.num_kv_blocks = 20;
  Rig rig(options);
  rig.start();
  BlockPool& pool = rig.engine->block_pool();
  const auto granted = pool.grant(9);
  REQUIRE(granted.has_value());
  const SequenceSpec spec = spec_of(1, random_tokens(200, 1), 2);  // 13 blocks
  rig.engine->add(spec, Role::kAlone);
  const SequenceSpec other = spec_of(2, {1, 2}, 3);
  rig.engine->add(other, Role::kSender);  // waits behind it
  rig.engine->cancel(other.key);
  rig.ear.wait([&] { return rig.ear.finished.contains(other.key); });  // so the engine has seen both
  CHECK_EQ(rig.engine->load().waiting, 1);
  CHECK_EQ(rig.engine->load().queued_tokens, 200);
  pool.quarantine(*granted);
  pool.free_quarantined(*granted);
  CHECK_EQ(rig.wait_for(spec.key).tokens.size(), 2);
  rig.check_idle();
}

TEST(a_broken_invariant_stops_the_engine_and_is_said_to_everyone) {
  Rig rig;
  rig.start();
  SequenceSpec spec = spec_of(1, random_tokens(20, 1));
  spec.output = {3};
  rig.engine->join(spec, {0, 1});  // nobody granted these
  CHECK_THROWS_WITH(rig.wait_for(spec.key), Error, "can't insert block 0");
  rig.ear.wait([&] { return !rig.ear.failed.empty(); });
  CHECK(rig.engine->failure().has_value());
  CHECK_THROWS_WITH(rig.engine->add(spec_of(2, {1}), Role::kAlone), Error, "the engine has failed");
}

// ---- No logit is a number

constexpr int kNanToken = 100;

std::vector<int32_t> prompt_with_nan(int count, int at) {
  std::vector<int32_t> prompt = random_tokens(count, 5);
  std::ranges::replace(prompt, kNanToken, 1);
  prompt[at] = kNanToken;
  return prompt;
}

TEST(a_request_without_a_number_among_its_logits_ends_alone_and_its_kv_is_never_cached) {
  RigOptions options{.nan_token = kNanToken};
  options.engine.max_num_batched_tokens = 24;  // the prompt's first blocks are offered before it is sampled
  Rig rig(options), alone(options);
  SequenceSpec good = spec_of(1, prompt_with_nan(70, 0), 30);
  good.prompt[0] = 7;
  SequenceSpec bad = spec_of(2, prompt_with_nan(70, 20));
  const Answer expected = alone.run_one(good);
  const std::vector<Answer> answers = rig.run({good, bad});
  CHECK(answers[0] == expected);
  CHECK_EQ(answers[1].tokens, std::vector<int32_t>{-1});
  CHECK_EQ(answers[1].first_position, 0);
  CHECK(answers[1].finish == FinishReason::kFailed);
  rig.ear.wait([&] { return rig.ear.finished.contains(bad.key); });
  CHECK(rig.ear.finished[bad.key] == FinishReason::kFailed);
  rig.check_idle();
  alone.check_idle();
  CHECK_EQ(rig.engine->load().blocks.cached, alone.engine->load().blocks.cached);
  bad.key = key_of(3);  // and again: it finds nothing
  const Answer again = rig.run_one(bad);
  CHECK_EQ(again.cached, 0);
  CHECK(again.finish == FinishReason::kFailed);
}

TEST(hits_of_a_request_without_a_number_are_withdrawn_too) {
  RigOptions options{.nan_token = kNanToken};
  options.engine.max_num_batched_tokens = 16;
  Rig rig(options);
  // Three chunks of this one are cached, then it is cancelled unsampled: nobody saw what they hold.
  const SequenceSpec left = spec_of(1, prompt_with_nan(200, 3));
  rig.engine->add(left, Role::kSender);
  int pieces = 0;
  rig.ear.at_layers = [&] {
    if (++pieces == 6) rig.engine->cancel(left.key);
  };
  rig.start();
  rig.ear.wait([&] { return rig.ear.finished.contains(left.key); });
  rig.engine->release(left.key);
  rig.run_one(spec_of(2, {1}, 1));
  rig.check_idle();
  CHECK_EQ(rig.engine->load().blocks.cached, 3);
  const Answer hit = rig.run_one(spec_of(3, left.prompt));
  CHECK(hit.finish == FinishReason::kFailed);
  CHECK_EQ(hit.cached, 48);
  rig.check_idle();
  CHECK_EQ(rig.engine->load().blocks.cached, 0);
}

TEST(a_joined_sequence_without_a_number_among_its_logits_ends_alone_and_its_kv_is_never_cached) {
  RigOptions options{.nan_token = kNanToken};
  Rig rig(options);
  rig.start();
  SequenceSpec spec = spec_of(1, random_tokens(40, 4));
  spec.output = {kNanToken};
  REQUIRE(rig.engine->slot_pool().grant(spec.key.router_epoch));
  const auto blocks = rig.engine->block_pool().grant(3).value();
  rig.engine->block_pool().granted_to_referenced(blocks);
  rig.engine->join(spec, blocks);
  const Answer answer = rig.wait_for(spec.key);
  CHECK_EQ(answer.tokens, std::vector<int32_t>{-1});
  CHECK_EQ(answer.first_position, 1);
  CHECK(answer.finish == FinishReason::kFailed);
  rig.ear.wait([&] { return rig.ear.finished.contains(spec.key); });
  rig.check_idle();
  CHECK_EQ(rig.engine->load().blocks.cached, 0);
}

TEST(a_sender_without_a_number_among_its_logits_says_so_and_its_kv_is_never_cached) {
  RigOptions options{.nan_token = kNanToken};
  options.engine.max_num_batched_tokens = 16;
  Rig rig(options);
  const SequenceSpec spec = spec_of(1, prompt_with_nan(70, 20));
  rig.engine->add(spec, Role::kSender);
  rig.start();
  rig.ear.wait([&] { return rig.ear.prefilled.contains(spec.key); });
  CHECK_EQ(rig.ear.prefilled[spec.key].token, -1);
  CHECK(rig.ear.prefilled[spec.key].finish == FinishReason::kFailed);
  CHECK_EQ(rig.engine->load().blocks.referenced, 5);  // a push may read them
  rig.engine->release(spec.key);
  CHECK_EQ(rig.run_one(spec_of(2, {1}, 1)).tokens.size(), 1);
  CHECK_EQ(rig.engine->load().blocks.cached, 0);
  rig.check_idle();
}

TEST(a_key_that_is_used_again_is_taken_until_its_second_end) {
  Rig rig;
  rig.run_one(spec_of(1, {1}, 1));
  const SequenceSpec again = spec_of(1, random_tokens(20, 1));
  rig.engine->add(again, Role::kSender);
  rig.run_one(spec_of(2, {1}, 1));
  CHECK_THROWS_WITH(rig.engine->add(again, Role::kSender), InvalidArgument, "is here already");
  rig.engine->release(again.key);
  rig.run_one(spec_of(3, {1}, 1));
  rig.check_idle();
}

TEST(load_says_what_the_last_step_computed) {
  Rig rig;
  rig.run_one(spec_of(1, random_tokens(10, 1), 1));
  StepSample step = rig.engine->load().step;
  CHECK_EQ(step.prefill_rows, 10);
  CHECK_EQ(step.attention_pairs, 55);  // 1 + 2 + ... + 10
  CHECK_EQ(step.decode_rows, 0);
  CHECK(step.seconds > 0);
  rig.run_one(spec_of(2, random_tokens(10, 2), 3));
  step = rig.engine->load().step;
  CHECK_EQ(step.decode_rows, 1);
  CHECK_EQ(step.context_tokens, 12);  // the prompt, the first token and itself
  CHECK_EQ(step.prefill_rows, 0);
}

TEST(load_counts_what_is_queued_at_once) {
  Rig rig;
  rig.engine->add(spec_of(1, random_tokens(20, 1)), Role::kAlone);
  rig.engine->add(spec_of(2, random_tokens(30, 1)), Role::kAlone);
  CHECK_EQ(rig.engine->load().queued_tokens, 50);
  CHECK_EQ(rig.engine->load().waiting, 2);
  rig.start();
  rig.wait_for(key_of(1));
  rig.wait_for(key_of(2));
  const EngineLoad load = rig.engine->load();
  CHECK_EQ(load.queued_tokens, 0);
  CHECK_EQ(load.prompt_tokens_computed + load.prefix_hit_tokens, 50);
  CHECK_EQ(load.decode_tokens_computed, 38);
  CHECK_EQ(load.running, 0);
}

TEST(load_counts_who_runs_and_says_how_long_the_last_step_took) {
  Rig rig;
  EngineLoad load;
  rig.ear.at_layers = [&] { load = rig.engine->load(); };
  rig.engine->add(spec_of(1, random_tokens(20, 1)), Role::kAlone);
  rig.engine->add(spec_of(2, random_tokens(200, 2)), Role::kSender);  // several steps
  rig.start();
  rig.ear.wait([&] { return rig.ear.prefilled.contains(key_of(2)); });
  CHECK_EQ(load.running, 2);
  CHECK_EQ(load.waiting, 0);
  CHECK(load.step.seconds > 0);
  rig.engine->release(key_of(2));
  rig.wait_for(key_of(1));
}

TEST(load_counts_what_came_during_a_step_from_its_end_on) {
  struct AtPrefilled : testing::Ear {
    void on_prefilled(const RequestKey& key, int32_t token, float logprob,
                      std::vector<std::pair<int32_t, float>> top_logprobs, FinishReason finish) override {
      load = engine->load();
      Ear::on_prefilled(key, token, logprob, std::move(top_logprobs), finish);
    }
    Engine* engine = nullptr;
    EngineLoad load;
  };
  AtPrefilled ear;
  Rig rig;
  ear.engine = rig.engine.get();
  rig.engine->set_listener(&ear);
  int posted = 0;
  ear.at_layers = [&] {
    if (posted++ > 0) return;
    rig.engine->add(spec_of(2, random_tokens(30, 1), 1), Role::kAlone);
    rig.engine->cancel(key_of(9));  // adds nobody
    rig.engine->release(key_of(9));
  };
  rig.engine->add(spec_of(1, random_tokens(20, 1)), Role::kSender);
  rig.start();
  ear.wait([&] { return ear.prefilled.contains(key_of(1)); });
  // A sender that has sampled runs no more. Where steps are launched ahead, the next one has taken in what came.
  const bool taken = rig.device->runs_behind();
  CHECK_EQ(ear.load.queued_tokens, taken ? 0 : 30);
  CHECK_EQ(ear.load.waiting, taken ? 0 : 1);
  CHECK_EQ(ear.load.running, taken ? 1 : 0);
  CHECK_EQ(ear.load.prompt_tokens_computed, 20);
  rig.wait_for(key_of(2));
  rig.engine->release(key_of(1));
  rig.run_one(spec_of(3, {1}, 1));  // behind the release
  CHECK_EQ(rig.engine->load().queued_tokens, 0);
  CHECK_EQ(rig.engine->load().waiting, 0);
  rig.check_idle();
}

TEST(a_step_that_stands_still_is_seen_in_the_load) {
  Rig rig;
  std::atomic<bool> entered{false}, go{false};
  rig.ear.at_layers = [&] {
    entered = true;
    entered.notify_all();
    go.wait(false);
  };
  rig.start();
  CHECK_EQ(rig.engine->load().step_running_s, 0);
  rig.engine->add(spec_of(1, random_tokens(20, 1)), Role::kSender);
  entered.wait(false);
  const double first = rig.engine->load().step_running_s;
  double later = first;
  while (later == first) later = rig.engine->load().step_running_s;
  CHECK(first > 0 && later > first);
  go = true;
  go.notify_all();
  rig.ear.wait([&] { return rig.ear.prefilled.count(key_of(1)) > 0; });
  rig.engine->release(key_of(1));
  while (rig.engine->load().step_running_s > 0) std::this_thread::yield();
}

// Of this process's thread with that name, as proc(5) has it.
char thread_state(const std::string& name) {
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(task.path() / "stat");
    std::string line;
    std::getline(file, line);
    const size_t at = line.find("(" + name + ") ");
    if (at != std::string::npos) return line.at(at + name.size() + 3);
  }
  return '?';
}

TEST(an_engine_without_work_sleeps) {
  Rig rig;
  const SequenceSpec spec = spec_of(1, random_tokens(20, 1), 2);
  rig.run_one(spec);
  rig.ear.wait([&] { return rig.ear.finished.contains(spec.key); });
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (thread_state("rtp-engine") != 'S' && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  CHECK_EQ(thread_state("rtp-engine"), 'S');
}

TEST(a_sender_may_run_though_nobody_listens) {
  Rig rig;
  rig.engine->set_listener(nullptr);
  const SequenceSpec spec = spec_of(1, random_tokens(20, 1));
  rig.engine->add(spec, Role::kSender);
  CHECK_EQ(rig.run_one(spec_of(2, {1})).tokens.size(), 20);
  CHECK_EQ(rig.engine->load().blocks.referenced, 2);
  rig.engine->release(spec.key);
  rig.run_one(spec_of(3, {1}, 1));
  rig.check_idle();
}

TEST(numerics_id_names_backend_isa_types_and_a_digest_of_the_ops) {
  Rig rig, twin;
  const std::string id = rig.engine->numerics_id();
  const std::string_view type = name_of(testing::test_types().front());
  CHECK(id.starts_with(concat(rig.device->backend(), "/", rig.device->isa(), "/", type, "/", type, "/tp1/exact/")));
  CHECK_EQ(id, twin.engine->numerics_id());
  if (testing::test_types().size() == 1) return;
  Rig other({.dtype = DType::kBF16});
  CHECK(id != other.engine->numerics_id());
}

TEST(a_pool_that_holds_no_block_is_refused_with_its_numbers) {
  RigOptions options;
  options.engine.num_kv_blocks = 0;
  options.engine.kv_pool_bytes = 1000;
  CHECK_THROWS_WITH(Rig(options), InvalidArgument, "kv_pool_bytes 1000 holds 0 KV blocks");
}

// ---- Solo sequences

TEST(a_solo_sequence_is_announced_before_its_first_step_and_answers_the_same_bits_as_the_others_do) {
  std::vector<SequenceSpec> specs;
  for (uint64_t i = 0; i < 5; ++i) specs.push_back(spec_of(i, random_tokens(20 + 30 * static_cast<int>(i), i)));
  Rig plain, rig;
  const std::vector<Answer> expected = plain.run(specs);
  specs[1].solo = specs[3].solo = true;
  CHECK(rig.run(specs) == expected);
  REQUIRE(rig.started.size() == 2);
  CHECK(rig.started[0] == specs[1].key);
  CHECK(rig.started[1] == specs[3].key);
  rig.check_idle();
}

TEST(an_idle_engine_begins_a_solo_sequence_when_its_notice_is_out) {
  Rig rig;
  rig.start();
  SequenceSpec spec = spec_of(1, random_tokens(20, 1), 1);
  spec.solo = true;
  const auto began = std::chrono::steady_clock::now();
  rig.run_one(spec);
  CHECK(std::chrono::steady_clock::now() - began >= kStartedNotice);
  CHECK(rig.started == std::vector{spec.key});
}

TEST(a_solo_sequence_cancelled_after_its_notice_holds_up_nobody) {
  Rig rig;
  rig.start();
  SequenceSpec solo = spec_of(1, random_tokens(20, 1)), next = spec_of(2, random_tokens(20, 2));
  solo.solo = next.solo = true;
  rig.engine->add(solo, Role::kAlone);
  rig.collect_until([&] { return !rig.started.empty(); });
  rig.engine->cancel(solo.key);
  CHECK(rig.run_one(next).finish == FinishReason::kLength);
  rig.check_idle();
}

}  // namespace
}  // namespace rtp_llm
