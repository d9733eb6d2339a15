#include "engine/sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "device/ops.h"
#include "device/token_rules.h"
#include "kv/kv_layout.h"
#include "transfer/invalid_request.h"

namespace rtp_llm {

namespace {

// EOS and stop ids without repeats, ascending.
std::vector<int32_t> ending_tokens(const SamplingParams& sampling, std::span<const int32_t> eos_token_ids) {
  std::vector<int32_t> ids(eos_token_ids.begin(), eos_token_ids.end());
  ids.insert(ids.end(), sampling.stop_token_ids.begin(), sampling.stop_token_ids.end());
  std::ranges::sort(ids);
  ids.erase(std::ranges::unique(ids).begin(), ids.end());
  return ids;
}

// As check(): of the field `param`.
template <class... Parts>
void check_field(bool holds, const char* param, const Parts&... parts) {
  if (!holds) throw InvalidRequest("InvalidRequestError", param, concat(parts...));
}

template <class... Parts>
void check_length(bool holds, const char* param, const Parts&... parts) {
  if (!holds) throw InvalidRequest("PromptTooLongError", param, concat(parts...));
}

void check_tokens(const char* field, std::span<const int32_t> tokens, int64_t vocab_size) {
  for (size_t i = 0; i < tokens.size(); ++i)
    check_field(tokens[i] >= 0 && tokens[i] < vocab_size, field, field, "[", i, "] = ", tokens[i],
                " is out of range, the vocabulary has ", vocab_size, " tokens");
}

void check_token_rules(const SamplingParams& sampling, int64_t vocab_size) {
  check_tokens("allowed_token_ids", sampling.allowed_token_ids, vocab_size);
  for (const auto& [token, bias] : sampling.logit_bias) {
    check_field(token >= 0 && token < vocab_size, "logit_bias", "logit_bias of token ", token,
                " is out of range, the vocabulary has ", vocab_size, " tokens");
    check_field(std::fabs(bias) <= kMaxLogitBias, "logit_bias", "logit_bias of token ", token, " must be from ",
                -kMaxLogitBias, " to ", kMaxLogitBias, ", got ", bias);
  }
  // NaN fails, as everywhere here.
  check_field(std::isfinite(sampling.repetition_penalty) && sampling.repetition_penalty >= 0, "repetition_penalty",
              "repetition_penalty must be greater than 0, got ", sampling.repetition_penalty);
  for (const auto& [name, penalty] : {std::pair("presence_penalty", sampling.presence_penalty),
                                      std::pair("frequency_penalty", sampling.frequency_penalty)})
    check_field(std::fabs(penalty) <= kMaxPenalty, name, name, " must be from ", -kMaxPenalty, " to ", kMaxPenalty,
                ", got ", penalty);
}

// Whether min_tokens suppresses all tokens that are allowed. REQUIRES: `suppressed` ascends.
bool suppresses_all(const SamplingParams& sampling, const std::vector<int32_t>& suppressed) {
  const auto& allowed = sampling.allowed_token_ids;
  return !allowed.empty() &&
         std::ranges::all_of(allowed, [&](int32_t id) { return std::ranges::binary_search(suppressed, id); });
}

void check_sampling(const SamplingParams& sampling, std::span<const int32_t> eos_token_ids) {
  check_field(std::isfinite(sampling.temperature) && sampling.temperature >= 0, "temperature",
              "temperature must be at least 0, got ", sampling.temperature);
  check_field(sampling.top_p > 0 && sampling.top_p <= 1, "top_p", "top_p must be greater than 0 and at most 1, got ",
              sampling.top_p);
  check_field(sampling.min_p >= 0 && sampling.min_p <= 1, "min_p", "min_p must be at least 0 and at most 1, got ",
              sampling.min_p);
  check_field(sampling.top_k >= 0, "top_k", "top_k must be at least 0, got ", sampling.top_k);
  check_field(sampling.max_tokens >= 1, "max_tokens", "max_tokens must be at least 1, got ", sampling.max_tokens);
  check_field(sampling.min_tokens >= 0 && sampling.min_tokens <= sampling.max_tokens, "min_tokens",
              "min_tokens must be from 0 to max_tokens ", sampling.max_tokens, ", got ", sampling.min_tokens);
  check_field(sampling.logprobs >= -1 && sampling.logprobs <= kMaxLogprobs, "logprobs", "logprobs must be at most ",
              kMaxLogprobs, ", got ", sampling.logprobs);
  if (sampling.min_tokens == 0) return;
  const std::vector<int32_t> suppressed = ending_tokens(sampling, eos_token_ids);
  check_field(suppressed.size() <= SamplingState::kMaxSuppressed, "min_tokens",
              "min_tokens suppresses all EOS and stop_token_ids, at most ", SamplingState::kMaxSuppressed, ", got ",
              suppressed.size());
  check_field(!suppresses_all(sampling, suppressed), "min_tokens",
              "min_tokens suppresses all EOS and stop_token_ids: none of the ", sampling.allowed_token_ids.size(),
              " allowed_token_ids is left");
}

}  // namespace

void check_spec(const SequenceSpec& spec, Role role, const EngineConfig& config, int64_t vocab_size, int num_blocks) {
  const SamplingParams& sampling = spec.sampling;
  check_field(!spec.prompt.empty(), "prompt", "prompt must have at least one token");
  const int64_t len = static_cast<int64_t>(spec.prompt.size() + spec.output.size());
  check_length(len < config.max_model_len, "prompt", "prompt of ", spec.prompt.size(), " tokens",
               spec.output.empty() ? "" : concat(" and ", spec.output.size(), " output tokens"),
               " is too long, max_model_len is ", config.max_model_len, ", the answer's tokens included");
  // Counts first: specs come from other processes and are checked on the transfer thread.
  check_field(sampling.stop_token_ids.size() <= kMaxStopTokenIds, "stop_token_ids", "stop_token_ids must have at most ",
              kMaxStopTokenIds, " ids, got ", sampling.stop_token_ids.size());
  check_field(sampling.allowed_token_ids.size() <= kMaxAllowedTokenIds, "allowed_token_ids",
              "allowed_token_ids must have at most ", kMaxAllowedTokenIds, " ids, got ",
              sampling.allowed_token_ids.size());
  check_field(sampling.logit_bias.size() <= kMaxTokenBiases, "logit_bias", "logit_bias must have at most ",
              kMaxTokenBiases, " tokens, got ", sampling.logit_bias.size());
  check_tokens("prompt", spec.prompt, vocab_size);
  check_tokens("output", spec.output, vocab_size);
  check_tokens("stop_token_ids", sampling.stop_token_ids, vocab_size);
  check_token_rules(sampling, vocab_size);
  check_sampling(sampling, config.eos_token_ids);
  check_field(static_cast<int64_t>(spec.output.size()) < sampling.max_tokens, "max_tokens", "output has ",
              spec.output.size(), " tokens already, max_tokens is ", sampling.max_tokens);
  // The last token's KV is never stored.
  const int64_t longest = role == Role::kSender
                              ? len
                              : std::min<int64_t>(config.max_model_len, spec.prompt.size() + sampling.max_tokens) - 1;
  const int64_t needed = blocks_for(longest, config.block_tokens);
  check_length(needed <= num_blocks, role == Role::kSender ? "prompt" : "max_tokens", "prompt of ", spec.prompt.size(),
               " tokens and max_tokens ", sampling.max_tokens, " need ", needed, " KV blocks of ", config.block_tokens,
               " tokens, the pool has ", num_blocks);
}

SamplingState sampling_state(const SequenceSpec& spec, std::span<const int32_t> eos_token_ids) {
  const SamplingParams& sampling = spec.sampling;
  SamplingState state{.temperature = sampling.temperature < kLeastTemperature ? 0.0f : sampling.temperature,
                      .top_p = sampling.top_p,
                      .min_p = sampling.min_p,
                      .top_k = sampling.top_k,
                      .seed = sampling.seed,
                      .choice = spec.key.choice,
                      .num_logprobs = sampling.logprobs,
                      .has_token_words = has_token_words(sampling),
                      .num_biases = static_cast<int32_t>(sampling.logit_bias.size()),
                      .repetition_penalty = sampling.repetition_penalty == 0 ? 1.0f : sampling.repetition_penalty,
                      .frequency_penalty = sampling.frequency_penalty,
                      .presence_penalty = sampling.presence_penalty};
  if (sampling.min_tokens == 0) return state;
  const std::vector<int32_t> ids = ending_tokens(sampling, eos_token_ids);
  state.suppress_until = sampling.min_tokens;
  state.num_suppressed = static_cast<int32_t>(ids.size());
  std::ranges::copy(ids, state.suppressed);
  return state;
}

namespace {

// What has come matters.
bool penalizes(const SamplingParams& sampling) {
  return (sampling.repetition_penalty != 0 && sampling.repetition_penalty != 1) || sampling.presence_penalty != 0 ||
         sampling.frequency_penalty != 0;
}

}  // namespace

bool has_token_words(const SamplingParams& sampling) {
  return penalizes(sampling) || !sampling.logit_bias.empty() || !sampling.allowed_token_ids.empty();
}

int64_t num_token_words(const SamplingParams& sampling, int64_t len) {
  return static_cast<int64_t>(2 * sampling.logit_bias.size() + sampling.allowed_token_ids.size()) +
         (penalizes(sampling) ? len : 0);
}

int64_t max_token_words(const EngineConfig& config) {
  return int64_t{config.max_model_len} + static_cast<int64_t>(kMaxAllowedTokenIds) + 2 * kMaxTokenBiases;
}

void add_token_words(const Sequence& sequence, SlotUpdate& update, StepInputs& inputs) {
  const SamplingParams& sampling = sequence.spec.sampling;
  for (const auto& [token, bias] : sampling.logit_bias) {
    const int32_t words[] = {token, std::bit_cast<int32_t>(bias)};
    inputs.add_words(words);
  }
  update.num_allowed = static_cast<int32_t>(sampling.allowed_token_ids.size());
  inputs.add_words(sampling.allowed_token_ids);
  if (!penalizes(sampling)) return;
  update.num_prompt = sequence.num_prompt;
  update.num_output = sequence.num_output();
  inputs.add_words(sequence.tokens);
}

FinishReason finish_of(const Sequence& sequence, const EngineConfig& config) {
  const auto holds = [](const std::vector<int32_t>& ids, int32_t id) {
    return std::ranges::find(ids, id) != ids.end();
  };
  const SamplingParams& sampling = sequence.spec.sampling;
  const int32_t last = sequence.tokens.back();
  if (holds(sampling.stop_token_ids, last)) return FinishReason::kStop;
  if (!sampling.ignore_eos && holds(config.eos_token_ids, last)) return FinishReason::kStop;
  if (sequence.num_output() >= sampling.max_tokens || sequence.len() >= config.max_model_len)
    return FinishReason::kLength;
  return FinishReason::kNone;
}

}  // namespace rtp_llm
