// What of a request concerns single tokens: which values are legal, the slot's sampling state, and
// when a token ends the sequence. Pure functions.
#pragma once

#include <cstdint>
#include <span>

#include "device/slots.h"
#include "device/step_inputs.h"
#include "engine/engine_config.h"
#include "engine/sequence.h"

namespace rtp_llm {

// Each token that is sampled is looked up among them.
constexpr size_t kMaxStopTokenIds = 128;
constexpr size_t kMaxAllowedTokenIds = 65'536;
constexpr float kMaxLogitBias = 100.0f;  // either way, as OpenAI's
constexpr float kMaxPenalty = 2.0f;      // of presence and frequency either way, as OpenAI's
// Below it sampling is greedy: differences of logprobs divided by it would be infinite.
constexpr float kLeastTemperature = 1e-5f;

// Throws InvalidRequest naming field and value for a spec that can never run: token ids, lengths,
// sampling values, or more KV blocks than the pool has.
void check_spec(const SequenceSpec& spec, Role role, const EngineConfig& config, int64_t vocab_size, int num_blocks);

// min_tokens suppresses all EOS and stop ids, also under ignore_eos.
SamplingState sampling_state(const SequenceSpec& spec, std::span<const int32_t> eos_token_ids);

// Whether a slot's binding says something of tokens (device/token_rules.h).
bool has_token_words(const SamplingParams& sampling);
// How much, of a sequence with `len` tokens so far: words that a step's inputs carry.
int64_t num_token_words(const SamplingParams& sampling, int64_t len);
// The most that one sequence can have.
int64_t max_token_words(const EngineConfig& config);
// Adds them to a step. REQUIRES: `update` is the step's last one, of this sequence, and has its sampling state.
void add_token_words(const Sequence& sequence, SlotUpdate& update, StepInputs& inputs);

// Whether the sequence ends with its last token: an EOS or stop id, max_tokens, or max_model_len.
FinishReason finish_of(const Sequence& sequence, const EngineConfig& config);

}  // namespace rtp_llm
