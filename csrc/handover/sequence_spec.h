// What an engine is asked to run. Plain data; it travels whole with every Submit and Reserve.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "handover/sampling_params.h"
#include "handover/types.h"

namespace rtp_llm {

// Everything after the prompt is a function of this and of the output tokens so far, so any worker
// can continue it.
struct SequenceSpec {
  RequestKey key;
  std::vector<int32_t> prompt;  // token ids, at least one
  std::vector<int32_t> output;  // tokens so far (a retry or a resume); p0 = output.size()
  SamplingParams sampling;
  std::string cache_salt;  // tenant, adapter, media; part of the block hash
  int32_t priority = 0;    // the least is admitted first and preempted last; no token depends on it
  // It may have ended a worker: until its second token each of its steps has no row of anybody else, and the first is
  // announced (TokenColumns::started).
  bool solo = false;
};

enum class Role : uint8_t {
  kAlone,   // run to the end here; may be preempted and requeued
  kSender,  // prefill, sample one token, then hold the blocks until release(); scheduled only when
            // it owns every local block that the prompt needs; never preempted
};

enum class FinishReason : uint8_t {
  kNone,
  kStop,
  kLength,
  kCancelled,
  kFailed,  // no token could be sampled: no logit that may come is a number. The row's token is -1
};

// How long a sequence's first output took here, in seconds. All zero: it isn't the first.
struct FirstTimes {
  float queued = 0;   // until its first step was planned
  float prefill = 0;  // from then on

  bool operator==(const FirstTimes&) const = default;
};

// One output token; `position` counts output tokens from 0.
struct SampledToken {
  int32_t position = 0;
  int32_t token = 0;
  float logprob = 0;  // NaN when not asked for
  FinishReason finish = FinishReason::kNone;
  int32_t num_cached_tokens = 0;  // prefix hits of the prompt, with a sequence's first output
  FirstTimes times;
  std::vector<std::pair<int32_t, float>> top_logprobs;  // descending; empty when not asked for
};

}  // namespace rtp_llm
