// What the engine is asked to run and what it answers. Plain data; the bindings' and the transfer
// thread's view of a sequence.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "handover/types.h"

namespace rtp_llm {

// Everything after the prompt is a function of this and of the output tokens so far, so any worker
// can continue it.
struct SequenceSpec {
  RequestKey key;
  std::vector<int32_t> prompt;  // token ids, at least one
  std::vector<int32_t> output;  // tokens so far (a retry or a resume); p0 = output.size()
  float temperature = 1.0f;
  float top_p = 1.0f;
  float min_p = 0.0f;
  int32_t top_k = 0;  // 0: off
  uint64_t seed = 0;
  int32_t max_tokens = 16;  // of output, `output` included
  int32_t min_tokens = 0;
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;  // end the sequence, besides the model's EOS ids
  int32_t num_logprobs = -1;            // -1: none; 0: the sampled token's; n <= kMaxLogprobs: and the n highest
  std::string cache_salt;               // adapter, media; part of the block hash
};

enum class Role : uint8_t {
  kAlone,   // run to the end here; may be preempted and requeued
  kSender,  // prefill, sample one token, then hold the blocks until release(); scheduled only when
            // it owns every local block that the prompt needs; never preempted
};

enum class FinishReason : uint8_t { kNone, kStop, kLength, kCancelled };

// Streamed once a step, columns of equal length. `position` counts output tokens from 0.
struct TokenColumns {
  std::vector<RequestKey> key;
  std::vector<int32_t> position;
  std::vector<int32_t> token;
  std::vector<float> logprob;              // NaN when not asked for
  std::vector<FinishReason> finish;        // of the sequence, with its last token
  std::vector<int32_t> num_cached_tokens;  // prompt tokens that were prefix hits (with a sequence's
                                           // first output), else 0
  std::vector<std::vector<std::pair<int32_t, float>>> top_logprobs;  // descending; empty when not asked for
};

}  // namespace rtp_llm
