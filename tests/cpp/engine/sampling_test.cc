#include "engine/sampling.h"

#include "check.h"

namespace rtp_llm {
namespace {

TEST(a_temperature_too_low_to_divide_by_is_greedy) {
  SequenceSpec spec;
  for (const float greedy : {0.0f, 1e-40f, 1e-38f, 9.9e-6f}) {
    spec.sampling.temperature = greedy;
    CHECK_EQ(sampling_state(spec, {}).temperature, 0.0f);
  }
  for (const float kept : {kLeastTemperature, 1.0f}) {
    spec.sampling.temperature = kept;
    CHECK_EQ(sampling_state(spec, {}).temperature, kept);
  }
}

TEST(a_slot_has_token_words_where_something_is_asked_of_single_tokens) {
  const auto words = [](const auto& change) {
    SequenceSpec spec;
    change(spec.sampling);
    CHECK_EQ(sampling_state(spec, {}).has_token_words, static_cast<int32_t>(has_token_words(spec.sampling)));
    return num_token_words(spec.sampling, 100);
  };
  CHECK_EQ(words([](SamplingParams&) {}), 0);
  CHECK_EQ(words([](SamplingParams& s) { s.repetition_penalty = 1.0f; }), 0);  // as 0: off
  CHECK_EQ(words([](SamplingParams& s) { s.repetition_penalty = 1.1f; }), 100);
  CHECK_EQ(words([](SamplingParams& s) { s.presence_penalty = -0.1f; }), 100);
  CHECK_EQ(words([](SamplingParams& s) { s.frequency_penalty = 0.1f; }), 100);
  CHECK_EQ(words([](SamplingParams& s) { s.logit_bias = {{1, 0.0f}, {7, 2.0f}}; }), 4);
  CHECK_EQ(words([](SamplingParams& s) { s.allowed_token_ids = {1, 2, 3}; }), 3);
  SequenceSpec spec;
  CHECK_EQ(sampling_state(spec, {}).repetition_penalty, 1.0f);
  spec.sampling.repetition_penalty = 1.5f;
  CHECK_EQ(sampling_state(spec, {}).repetition_penalty, 1.5f);
}

}  // namespace
}  // namespace rtp_llm
