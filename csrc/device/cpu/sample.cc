// sample: one token a row, rows shared out over the threads.
#include <algorithm>
#include <optional>

#include "device/cpu/cpu_ops.h"
#include "device/cpu/rows.h"
#include "device/cpu/sample_row.h"
#include "device/cpu/slot_rows.h"
#include "device/cpu/token_words.h"

namespace rtp_llm::cpu {
namespace {

// One thread's workspace: logits that are masked or ruled otherwise, then candidates.
int64_t bytes_per_thread(int64_t vocab) {
  const int64_t bytes = vocab * static_cast<int64_t>(sizeof(float) + sizeof(Candidate));
  return (bytes + 63) / 64 * 64;
}

void check_sample(const SampleArgs& args, int num_threads) {
  const int64_t vocab = args.logits.shape[1];
  const Slots& slots = slots_of("sample", args.step);
  const auto rows = static_cast<int64_t>(args.step->sample_rows.size());
  check_features("sample", "logits", args.logits, args.logits.shape[0], vocab);
  check(args.logits.dtype == DType::kF32, "sample: logits must be float32, got ", name_of(args.logits.dtype));
  check(slots.sampling != nullptr, "sample: slots have no sampling state");
  check(args.tokens.numel() >= rows && args.logprobs.numel() >= rows, "sample: outputs have ", args.tokens.numel(),
        " rows, need ", rows);
  check(args.workspace.numel() >= bytes_per_thread(vocab) * num_threads, "sample: workspace has ",
        args.workspace.numel(), " bytes, need ", bytes_per_thread(vocab) * num_threads);
  check(args.allowed.empty() || args.allowed.shape[1] >= (vocab + 31) / 32, "sample: bitmask has ",
        args.allowed.shape[1], " words a row, need ", (vocab + 31) / 32);
  const int64_t columns = args.top_tokens.empty() ? 0 : args.top_tokens.shape[1];
  for (const SampleRow& row : args.step->sample_rows) {
    check(row.row >= 0 && row.row < args.logits.shape[0], "sample: row ", row.row, " out of range, logits has ",
          args.logits.shape[0]);
    check(row.slot >= 0 && row.slot < slots.last_token.shape[0], "sample: slot ", row.slot, " out of range, there are ",
          slots.last_token.shape[0]);
    const SamplingState& state = slots.sampling[row.slot];
    check(state.num_logprobs <= std::min<int64_t>(columns, kMaxLogprobs), "sample: slot ", row.slot, " wants ",
          state.num_logprobs, " logprobs, there is room for ", columns);
    check(state.temperature >= 0.0f, "sample: slot ", row.slot, " has temperature ", state.temperature);
    check(state.num_suppressed >= 0 && state.num_suppressed <= SamplingState::kMaxSuppressed, "sample: slot ", row.slot,
          " suppresses ", state.num_suppressed, " tokens, at most ", SamplingState::kMaxSuppressed);
    check(state.has_token_words == 0 || (!slots.token_words.empty() && slots.token_words.shape[1] == vocab),
          "sample: slot ", row.slot, " has token words, of ",
          slots.token_words.empty() ? 0 : slots.token_words.shape[1], " tokens, the vocabulary has ", vocab);
  }
}

// tokens[i], logprobs[i] and the top ones of rows[i].
void sample_row(const SampleArgs& args, int64_t i, uint8_t* workspace) {
  const SampleRow& row = args.step->sample_rows[static_cast<size_t>(i)];
  const SamplingState& state = args.step->slots->sampling[row.slot];
  const int64_t vocab = args.logits.shape[1];
  const auto* logits = row_of<const float>(args.logits, row.row);
  const int32_t position = args.step->slots->output_position.as<const int32_t>()[row.slot];

  auto* masked = reinterpret_cast<float*>(workspace);
  auto* candidates = reinterpret_cast<Candidate*>(masked + vocab);
  const auto* allowed = args.allowed.empty() ? nullptr : row_of<const int32_t>(args.allowed, row.row);
  const bool suppress = state.num_suppressed > 0 && position < state.suppress_until;
  const bool mask = allowed != nullptr || suppress || state.has_token_words != 0;
  if (mask) mask_logits(logits, vocab, allowed, state, suppress, masked);
  if (state.has_token_words != 0) apply_token_words(*args.step->slots, row.slot, state, vocab, masked);

  std::optional<LogSoftmax> logprob;
  if (state.temperature != 0.0f || state.num_logprobs >= 0) logprob.emplace(logits, vocab);
  const int32_t token = choose_token(mask ? masked : logits, vocab, logprob ? &*logprob : nullptr, state,
                                     static_cast<uint32_t>(position), candidates);
  args.tokens.as<int32_t>()[i] = token;
  const bool report = state.num_logprobs >= 0;
  args.logprobs.as<float>()[i] = report && token >= 0 ? (*logprob)(logits[token]) : 0.0f;
  if (args.top_tokens.empty()) return;
  auto* ids = row_of<int32_t>(args.top_tokens, i);
  auto* values = row_of<float>(args.top_logprobs, i);
  const int64_t columns = args.top_tokens.shape[1];
  if (report) return top_logprobs(logits, vocab, *logprob, state.num_logprobs, columns, ids, values);
  std::fill_n(ids, columns, -1);
  std::fill_n(values, columns, 0.0f);
}

}  // namespace

void CpuOps::sample(const SampleArgs& args) {
  check_sample(args, pool_.num_threads());
  const int64_t bytes = bytes_per_thread(args.logits.shape[1]);
  const Slots& slots = *args.step->slots;
  const std::span<const SampleRow> sampled = args.step->sample_rows;
  const auto rows = static_cast<int64_t>(sampled.size());
  pool_.run(rows, [&](int64_t i, int thread) { sample_row(args, i, args.workspace.as<uint8_t>() + thread * bytes); });
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t slot = sampled[static_cast<size_t>(i)].slot;
    const int32_t token = args.tokens.as<const int32_t>()[i];
    if (token < 0) continue;
    slots.last_token.as<int32_t>()[slot] = token;
    slots.output_position.as<int32_t>()[slot] += 1;
    if (slots.sampling[slot].has_token_words != 0) ++token_words_of(slots, slot)[token];
  }
}

int64_t CpuOps::sample_workspace_bytes(int64_t, int64_t vocab) const {
  return bytes_per_thread(vocab) * pool_.num_threads();
}

}  // namespace rtp_llm::cpu
