// What a request says of single tokens before its next one is chosen: which may come, what is added to a logit, what
// tokens that have come lose. One copy of the arithmetic, so that all backends have the same bits.
//
// The order is vLLM's (vllm/v1/sample/sampler.py): allowed tokens, bias, repetition, frequency, presence.
#pragma once

#include <cstdint>
#include <limits>

#include "device/slots.h"

namespace rtp_llm {

// A word a token of the vocabulary (Slots::token_words): bits, and below them how often the answer has the token.
inline constexpr uint32_t kTokenBarred = 1u << 31;    // may not come
inline constexpr uint32_t kTokenInPrompt = 1u << 30;  // is in the prompt
inline constexpr uint32_t kTokenBiased = 1u << 29;    // is among the slot's biases
inline constexpr uint32_t kTokenCount = kTokenBiased - 1;

// The bias of a token. REQUIRES: it has one; `biases` ascend by token.
constexpr float bias_of(const TokenBias* biases, int32_t count, int32_t token) {
  int32_t first = 0;
  for (int32_t last = count - 1; first < last;) {
    const int32_t middle = first + (last - first) / 2;
    if (biases[middle].token < token)
      first = middle + 1;
    else
      last = middle;
  }
  return biases[first].bias;
}

// A number stays one: what is penalized beyond the greatest is the greatest. REQUIRES: logit is a number above -inf.
constexpr float penalized(float logit, uint32_t word, const SamplingState& state) {
  constexpr float kMost = std::numeric_limits<float>::max();
  const uint32_t count = word & kTokenCount;
  if ((count == 0 && (word & kTokenInPrompt) == 0) || logit > kMost) return logit;
  logit = logit > 0.0f ? logit / state.repetition_penalty : logit * state.repetition_penalty;
  if (count > 0) {
    logit = logit - state.frequency_penalty * static_cast<float>(count);
    logit = logit - state.presence_penalty;
  }
  return logit > kMost ? kMost : logit < -kMost ? -kMost : logit;
}

// The logit that a token is chosen by. REQUIRES: as penalized().
constexpr float ruled_logit(float logit, int32_t token, uint32_t word, const SamplingState& state,
                            const TokenBias* biases) {
  if (word == 0) return logit;
  if ((word & kTokenBarred) != 0) return -std::numeric_limits<float>::infinity();
  if ((word & kTokenBiased) != 0) logit = logit + bias_of(biases, state.num_biases, token);
  return penalized(logit, word, state);
}

}  // namespace rtp_llm
