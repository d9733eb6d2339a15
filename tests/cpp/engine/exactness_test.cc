// The engine against itself, bit for bit: an answer is a function of (request, tokens so far) alone.
#include <cstring>

#include "check.h"
#include "engine/sampling.h"
#include "rig.h"

namespace rtp_llm {
namespace {

using testing::Answer;
using testing::key_of;
using testing::random_tokens;
using testing::Rig;
using testing::RigOptions;
using testing::spec_of;

const std::vector<DType> kTypes = testing::test_types();

// Prompts of mixed lengths, some of them sharing a prefix.
std::vector<SequenceSpec> eight_requests() {
  std::vector<SequenceSpec> specs;
  const std::vector<int32_t> shared = random_tokens(48, 99);
  const int lengths[] = {1, 15, 16, 17, 40, 64, 100, 131};
  for (uint64_t i = 0; i < 8; ++i) {
    std::vector<int32_t> prompt = random_tokens(lengths[i], static_cast<int>(i));
    if (i % 2 == 1) prompt.insert(prompt.begin(), shared.begin(), shared.end());
    specs.push_back(spec_of(i, std::move(prompt), 12 + static_cast<int>(i)));
  }
  return specs;
}

// Each request alone on a fresh engine, in one chunk, without a prefix cache.
std::vector<Answer> undisturbed(const std::vector<SequenceSpec>& specs, DType dtype) {
  RigOptions options{.dtype = dtype};
  options.engine.max_num_batched_tokens = 256;
  options.engine.max_num_seqs = 1;
  options.engine.enable_prefix_caching = false;
  Rig rig(options);
  std::vector<Answer> answers;
  for (const SequenceSpec& spec : specs) answers.push_back(rig.run_one(spec));
  rig.check_idle();
  return answers;
}

void check_all(const std::vector<SequenceSpec>& specs, const std::vector<Answer>& expected, RigOptions options) {
  Rig rig(options);
  const std::vector<Answer> answers = rig.run(specs);
  for (size_t i = 0; i < specs.size(); ++i) CHECK(answers[i] == expected[i]);
  rig.check_idle();
}

TEST(answers_differ_between_requests_and_end_by_length) {
  const auto answers = undisturbed(eight_requests(), testing::test_types().front());
  for (size_t i = 0; i < answers.size(); ++i) {
    CHECK_EQ(answers[i].tokens.size(), 12 + i);
    CHECK(answers[i].finish == FinishReason::kLength);
    CHECK_EQ(answers[i].top[0].size(), 3);
    if (i > 0) CHECK(answers[i].tokens != answers[0].tokens);
  }
}

TEST(what_is_asked_of_single_tokens_changes_an_answer) {
  for (uint64_t request : {1, 2, 3, 4}) {
    SequenceSpec spec = spec_of(request, random_tokens(30, 5));
    const Answer ruled = undisturbed({spec}, testing::test_types().front())[0];
    const std::vector<int32_t> allowed = spec.sampling.allowed_token_ids;
    for (int32_t token : ruled.tokens) CHECK(allowed.empty() || std::ranges::find(allowed, token) != allowed.end());
    for (int field = 0; field < 3; ++field) {
      SequenceSpec other = spec;
      if (field == 0) other.sampling.logit_bias = {};
      if (field == 1) other.sampling.allowed_token_ids = {};
      if (field == 2) other.sampling.repetition_penalty = other.sampling.frequency_penalty = 0;
      const bool same = num_token_words(other.sampling, 30) == num_token_words(spec.sampling, 30) &&
                        other.sampling.repetition_penalty == spec.sampling.repetition_penalty;
      const Answer without = undisturbed({other}, testing::test_types().front())[0];
      CHECK_EQ(without.tokens == ruled.tokens, same);
    }
  }
}

TEST(eight_at_once_are_equal_to_one_at_a_time_with_any_chunk_block_and_thread_count) {
  for (DType dtype : kTypes) {
    const auto specs = eight_requests();
    const auto expected = undisturbed(specs, dtype);
    for (int64_t chunk : {1, 7, 64, 256}) {
      RigOptions options{.dtype = dtype};
      options.engine.max_num_batched_tokens = chunk;
      check_all(specs, expected, options);
    }
    for (int block_tokens : {testing::small_block(), 64}) {
      RigOptions options{.dtype = dtype};
      options.engine.block_tokens = block_tokens;
      check_all(specs, expected, options);
    }
    check_all(specs, expected, {.dtype = dtype, .num_threads = 2});
  }
}

TEST(requests_that_arrive_while_others_run_change_nothing) {
  for (DType dtype : kTypes) {
    const auto specs = eight_requests();
    const auto expected = undisturbed(specs, dtype);
    RigOptions options{.dtype = dtype};
    options.engine.max_num_batched_tokens = 24;
    Rig rig(options);
    rig.start();
    for (size_t i = 0; i < specs.size(); ++i) {
      rig.engine->add(specs[i], Role::kAlone);
      if (i < 3) rig.wait_for_tokens(specs[0].key, 3 * i);
    }
    for (size_t i = 0; i < specs.size(); ++i) CHECK(rig.wait_for(specs[i].key) == expected[i]);
    rig.check_idle();
  }
}

TEST(a_prefix_hit_changes_nothing_and_is_counted) {
  for (DType dtype : kTypes) {
    const SequenceSpec spec = spec_of(1, random_tokens(64, 5));
    const Answer expected = undisturbed({spec}, dtype)[0];
    Rig rig({.dtype = dtype});
    CHECK(rig.run_one(spec) == expected);
    CHECK_EQ(rig.answers[spec.key].cached, 0);
    SequenceSpec again = spec;
    again.key = {.router_epoch = 7, .request = 1, .attempt = 1};
    const Answer second = rig.run_one(again);
    CHECK(second == expected);
    CHECK_EQ(second.cached, 48);  // the fourth block's last token is always computed
    CHECK_EQ(rig.engine->load().prefix_hit_tokens, 48);
    rig.check_idle();
  }
}

TEST(a_pool_too_small_for_all_preempts_and_changes_nothing) {
  for (DType dtype : kTypes) {
    std::vector<SequenceSpec> specs;
    for (uint64_t i = 0; i < 5; ++i) specs.push_back(spec_of(i, random_tokens(20 + static_cast<int>(i), 40 + i), 60));
    const auto expected = undisturbed(specs, dtype);
    for (bool caching : {true, false}) {
      RigOptions options{.dtype = dtype};
      options.engine.block_tokens = testing::small_block();
      options.engine.num_kv_blocks = 26 * 8 / testing::small_block();  // two fifths of what all need at their end
      options.engine.enable_prefix_caching = caching;
      Rig rig(options);
      auto asked = specs;
      if (!caching)  // the last comes first
        for (size_t i = 0; i < asked.size(); ++i) asked[i].priority = -static_cast<int32_t>(i);
      const auto answers = rig.run(asked);
      for (size_t i = 0; i < specs.size(); ++i) CHECK(answers[i] == expected[i]);
      CHECK(rig.engine->load().preemptions > 0);
      rig.check_idle();
    }
  }
}

TEST(a_second_turn_is_equal_with_and_without_a_hit_on_the_answers_blocks) {
  for (DType dtype : kTypes) {
    const SequenceSpec first = spec_of(1, random_tokens(30, 8), 40);
    Rig rig({.dtype = dtype});
    const Answer answer = rig.run_one(first);
    std::vector<int32_t> prompt = first.prompt;
    prompt.insert(prompt.end(), answer.tokens.begin(), answer.tokens.end());
    const std::vector<int32_t> question = random_tokens(9, 77);
    prompt.insert(prompt.end(), question.begin(), question.end());
    const SequenceSpec second = spec_of(2, prompt);
    const Answer hit = rig.run_one(second);
    CHECK_EQ(hit.cached, 64);  // 69 tokens' KV were stored, 30 of them the first prompt's
    CHECK(hit == undisturbed({second}, dtype)[0]);
    rig.check_idle();
  }
}

TEST(an_answer_resumed_at_any_position_goes_on_with_the_same_bits) {
  for (DType dtype : kTypes) {
    for (uint64_t request : {3, 4}) {  // greedy, seeded
      SequenceSpec spec = spec_of(request, random_tokens(21, 9), 24);
      spec.sampling.min_tokens = 20;
      const Answer whole = undisturbed({spec}, dtype)[0];
      Rig fresh({.dtype = dtype});
      RigOptions other{.dtype = dtype};
      other.engine.block_tokens = testing::small_block();
      other.engine.max_num_batched_tokens = 7;
      Rig chunked(other);
      for (size_t done = 1; done < whole.tokens.size(); ++done) {
        SequenceSpec resumed = spec;
        resumed.key.attempt = static_cast<uint32_t>(done);
        resumed.output.assign(whole.tokens.begin(), whole.tokens.begin() + done);
        for (Rig* rig : {&fresh, &chunked}) {
          const Answer rest = rig->run_one(resumed);
          CHECK_EQ(rest.first_position, done);
          CHECK(std::equal(rest.tokens.begin(), rest.tokens.end(), whole.tokens.begin() + done, whole.tokens.end()));
          CHECK(std::equal(rest.logprob_bits.begin(), rest.logprob_bits.end(), whole.logprob_bits.begin() + done,
                           whole.logprob_bits.end()));
          CHECK(rest.finish == whole.finish);
        }
      }
      fresh.check_idle();
      chunked.check_idle();
    }
  }
}

}  // namespace
}  // namespace rtp_llm
