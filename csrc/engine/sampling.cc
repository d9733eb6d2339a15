#include "engine/sampling.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "device/ops.h"

namespace rtp_llm {

namespace {

// EOS and stop ids without repeats, ascending.
std::vector<int32_t> ending_tokens(const SequenceSpec& spec, std::span<const int32_t> eos_token_ids) {
  std::vector<int32_t> ids(eos_token_ids.begin(), eos_token_ids.end());
  ids.insert(ids.end(), spec.stop_token_ids.begin(), spec.stop_token_ids.end());
  std::ranges::sort(ids);
  ids.erase(std::ranges::unique(ids).begin(), ids.end());
  return ids;
}

void check_tokens(const char* field, std::span<const int32_t> tokens, int64_t vocab_size) {
  for (size_t i = 0; i < tokens.size(); ++i)
    check(tokens[i] >= 0 && tokens[i] < vocab_size, field, "[", i, "] = ", tokens[i],
          " is out of range, the vocabulary has ", vocab_size, " tokens");
}

void check_sampling(const SequenceSpec& spec, const EngineConfig& config) {
  check(std::isfinite(spec.temperature) && spec.temperature >= 0, "temperature must be at least 0, got ",
        spec.temperature);
  check(spec.top_p > 0 && spec.top_p <= 1, "top_p must be greater than 0 and at most 1, got ", spec.top_p);
  check(spec.min_p >= 0 && spec.min_p <= 1, "min_p must be at least 0 and at most 1, got ", spec.min_p);
  check(spec.top_k >= 0, "top_k must be at least 0, got ", spec.top_k);
  check(spec.max_tokens >= 1, "max_tokens must be at least 1, got ", spec.max_tokens);
  check(spec.min_tokens >= 0 && spec.min_tokens <= spec.max_tokens, "min_tokens must be from 0 to max_tokens ",
        spec.max_tokens, ", got ", spec.min_tokens);
  check(spec.num_logprobs >= -1 && spec.num_logprobs <= kMaxLogprobs, "logprobs must be at most ", kMaxLogprobs,
        ", got ", spec.num_logprobs);
  if (spec.min_tokens == 0) return;
  const size_t suppressed = ending_tokens(spec, config.eos_token_ids).size();
  check(suppressed <= SamplingState::kMaxSuppressed, "min_tokens suppresses all EOS and stop_token_ids, at most ",
        SamplingState::kMaxSuppressed, ", got ", suppressed);
}

}  // namespace

void check_spec(const SequenceSpec& spec, Role role, const EngineConfig& config, int64_t vocab_size, int num_blocks) {
  check(!spec.prompt.empty(), "prompt must have at least one token");
  const int64_t len = static_cast<int64_t>(spec.prompt.size() + spec.output.size());
  check(len < config.max_model_len, "prompt of ", spec.prompt.size(), " tokens",
        spec.output.empty() ? "" : concat(" and ", spec.output.size(), " output tokens"),
        " is too long, max_model_len is ", config.max_model_len, ", the answer's tokens included");
  // Counts first: specs come from other processes and are checked on the transfer thread.
  check(spec.stop_token_ids.size() <= kMaxStopTokenIds, "stop_token_ids must have at most ", kMaxStopTokenIds,
        " ids, got ", spec.stop_token_ids.size());
  check_tokens("prompt", spec.prompt, vocab_size);
  check_tokens("output", spec.output, vocab_size);
  check_tokens("stop_token_ids", spec.stop_token_ids, vocab_size);
  check_sampling(spec, config);
  check(static_cast<int64_t>(spec.output.size()) < spec.max_tokens, "output has ", spec.output.size(),
        " tokens already, max_tokens is ", spec.max_tokens);
  // The last token's KV is never stored.
  const int64_t longest =
      role == Role::kSender ? len : std::min<int64_t>(config.max_model_len, spec.prompt.size() + spec.max_tokens) - 1;
  const int64_t needed = (longest + config.block_tokens - 1) / config.block_tokens;
  check(needed <= num_blocks, "prompt of ", spec.prompt.size(), " tokens and max_tokens ", spec.max_tokens, " need ",
        needed, " KV blocks of ", config.block_tokens, " tokens, the pool has ", num_blocks);
}

SamplingState sampling_state(const SequenceSpec& spec, std::span<const int32_t> eos_token_ids) {
  SamplingState state{.temperature = spec.temperature < kLeastTemperature ? 0.0f : spec.temperature,
                      .top_p = spec.top_p,
                      .min_p = spec.min_p,
                      .top_k = spec.top_k,
                      .seed = spec.seed,
                      .choice = spec.key.choice,
                      .num_logprobs = spec.num_logprobs};
  if (spec.min_tokens == 0) return state;
  const std::vector<int32_t> ids = ending_tokens(spec, eos_token_ids);
  state.suppress_until = spec.min_tokens;
  state.num_suppressed = static_cast<int32_t>(ids.size());
  std::ranges::copy(ids, state.suppressed);
  return state;
}

FinishReason finish_of(const Sequence& sequence, const EngineConfig& config) {
  const auto holds = [](const std::vector<int32_t>& ids, int32_t id) {
    return std::ranges::find(ids, id) != ids.end();
  };
  const SequenceSpec& spec = sequence.spec;
  const int32_t last = sequence.tokens.back();
  if (holds(spec.stop_token_ids, last)) return FinishReason::kStop;
  if (!spec.ignore_eos && holds(config.eos_token_ids, last)) return FinishReason::kStop;
  if (sequence.num_output() >= spec.max_tokens || sequence.len() >= config.max_model_len) return FinishReason::kLength;
  return FinishReason::kNone;
}

}  // namespace rtp_llm
