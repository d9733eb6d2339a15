// What a request asks of its sampling. A new field is one member here and its row in kSamplingFields; Python, the wire
// and the bindings know it by that name (tests/test_sampling_params.py compares them).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

namespace rtp_llm {

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  float top_p = 1.0f;
  float min_p = 0.0f;
  int32_t top_k = 0;  // 0: off
  uint64_t seed = 0;
  int32_t max_tokens = 16;  // of output, the tokens so far included
  int32_t min_tokens = 0;
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;     // end the sequence, besides the model's EOS ids
  int32_t logprobs = -1;                   // -1: none; 0: the sampled token's; n <= kMaxLogprobs: and the n highest
  std::map<int32_t, float> logit_bias;     // by token, added to its logit
  std::vector<int32_t> allowed_token_ids;  // no other may come; none: all may
  float repetition_penalty = 0.0f;         // of the prompt's and the answer's tokens; 0: off, as 1 is
  float presence_penalty = 0.0f;           // of the answer's
  float frequency_penalty = 0.0f;          // of the answer's, each time
};

template <class Value>
struct SamplingField {
  const char* name;
  Value SamplingParams::* member;
};

inline constexpr std::tuple kSamplingFields{
    SamplingField{"temperature", &SamplingParams::temperature},
    SamplingField{"top_p", &SamplingParams::top_p},
    SamplingField{"min_p", &SamplingParams::min_p},
    SamplingField{"top_k", &SamplingParams::top_k},
    SamplingField{"seed", &SamplingParams::seed},
    SamplingField{"max_tokens", &SamplingParams::max_tokens},
    SamplingField{"min_tokens", &SamplingParams::min_tokens},
    SamplingField{"ignore_eos", &SamplingParams::ignore_eos},
    SamplingField{"stop_token_ids", &SamplingParams::stop_token_ids},
    SamplingField{"logprobs", &SamplingParams::logprobs},
    SamplingField{"logit_bias", &SamplingParams::logit_bias},
    SamplingField{"allowed_token_ids", &SamplingParams::allowed_token_ids},
    SamplingField{"repetition_penalty", &SamplingParams::repetition_penalty},
    SamplingField{"presence_penalty", &SamplingParams::presence_penalty},
    SamplingField{"frequency_penalty", &SamplingParams::frequency_penalty},
};

namespace detail {

struct Anything {
  template <class Value>
  operator Value() const;
};

template <class... Given>
consteval size_t num_sampling_members() {
  if constexpr (requires { SamplingParams{Given{}..., Anything{}}; })
    return num_sampling_members<Given..., Anything>();
  else
    return sizeof...(Given);
}

}  // namespace detail

static_assert(detail::num_sampling_members<>() == std::tuple_size_v<decltype(kSamplingFields)>,
              "each member of SamplingParams has a row in kSamplingFields");

}  // namespace rtp_llm
