// The token words of a slot: written when it is bound, read and counted when its rows are sampled.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>

#include "device/token_rules.h"
#include "tensor/check.h"

namespace rtp_llm::cpu {

inline uint32_t* token_words_of(const Slots& slots, int32_t slot) {
  return slots.token_words.as<uint32_t>() + slot * slots.token_words.stride[0];
}

// Throws InvalidArgument for words or tokens out of range.
inline void write_token_words(const Slots& slots, const SlotUpdate& update, std::span<const int32_t> list) {
  check(!slots.token_words.empty() && slots.biases != nullptr, "update_slots: slot ", update.slot,
        " has token words, there is no room for any");
  const SamplingState& state = update.sampling;
  check(state.num_biases >= 0 && state.num_biases <= kMaxTokenBiases, "update_slots: slot ", update.slot, " has ",
        state.num_biases, " biases, at most ", kMaxTokenBiases);
  check(update.num_allowed >= 0 && update.num_prompt >= 0 && update.num_output >= 0 && update.first_word >= 0 &&
            static_cast<size_t>(update.first_word) + static_cast<size_t>(update.num_words()) <= list.size(),
        "update_slots: words from ", update.first_word, " on, ", update.num_words(), " of them, there are ",
        list.size());
  const int64_t vocab = slots.token_words.shape[1];
  uint32_t* const words = token_words_of(slots, update.slot);
  std::span<const int32_t> left = list.subspan(static_cast<size_t>(update.first_word));
  const auto take = [&](int32_t count) {
    const auto taken = left.first(static_cast<size_t>(count));
    left = left.subspan(static_cast<size_t>(count));
    return taken;
  };
  const auto word_of = [&](int32_t token) -> uint32_t& {
    check(token >= 0 && token < vocab, "update_slots: token ", token, " of slot ", update.slot,
          " out of range, the vocabulary has ", vocab);
    return words[token];
  };
  const auto biases = take(2 * state.num_biases);
  std::fill_n(words, vocab, update.num_allowed > 0 ? kTokenBarred : 0u);
  for (int32_t token : take(update.num_allowed)) word_of(token) &= ~kTokenBarred;
  for (int32_t i = 0; i < state.num_biases; ++i) {
    const int32_t token = biases[static_cast<size_t>(2 * i)];
    word_of(token) |= kTokenBiased;
    slots.biases[int64_t{update.slot} * kMaxTokenBiases + i] = {
        token, std::bit_cast<float>(biases[static_cast<size_t>(2 * i + 1)])};
  }
  for (int32_t token : take(update.num_prompt)) word_of(token) |= kTokenInPrompt;
  for (int32_t token : take(update.num_output)) ++word_of(token);
}

// The logits that tokens are chosen by; in place. What is no number stays as it is.
inline void apply_token_words(const Slots& slots, int32_t slot, const SamplingState& state, int64_t vocab,
                              float* logits) {
  const uint32_t* const words = token_words_of(slots, slot);
  const TokenBias* const biases = slots.biases + int64_t{slot} * kMaxTokenBiases;
  for (int64_t i = 0; i < vocab; ++i)
    if (words[i] != 0 && logits[i] > -std::numeric_limits<float>::infinity())
      logits[i] = ruled_logit(logits[i], static_cast<int32_t>(i), words[i], state, biases);
}

}  // namespace rtp_llm::cpu
