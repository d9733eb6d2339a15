#include "engine/sampling.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "device/ops.h"
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
  const size_t suppressed = ending_tokens(sampling, eos_token_ids).size();
  check_field(suppressed <= SamplingState::kMaxSuppressed, "min_tokens",
              "min_tokens suppresses all EOS and stop_token_ids, at most ", SamplingState::kMaxSuppressed, ", got ",
              suppressed);
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
  check_tokens("prompt", spec.prompt, vocab_size);
  check_tokens("output", spec.output, vocab_size);
  check_tokens("stop_token_ids", sampling.stop_token_ids, vocab_size);
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
                      .num_logprobs = sampling.logprobs};
  if (sampling.min_tokens == 0) return state;
  const std::vector<int32_t> ids = ending_tokens(sampling, eos_token_ids);
  state.suppress_until = sampling.min_tokens;
  state.num_suppressed = static_cast<int32_t>(ids.size());
  std::ranges::copy(ids, state.suppressed);
  return state;
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
