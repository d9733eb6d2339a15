// What an engine answers; what it is asked lies in sequence_spec.h. Plain data; the
// bindings' and the transfer thread's view of a sequence.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "handover/sequence_spec.h"

namespace rtp_llm {

// Streamed once a step, columns of equal length. `position` counts output tokens from 0.
struct TokenColumns {
  std::vector<RequestKey> key;
  std::vector<int32_t> position;
  std::vector<int32_t> token;
  std::vector<float> logprob;              // NaN when not asked for
  std::vector<FinishReason> finish;        // of the sequence, with its last token
  std::vector<int32_t> num_cached_tokens;  // prompt tokens that were prefix hits (with a sequence's
                                           // first output), else 0
  std::vector<FirstTimes> times;
  std::vector<int32_t> num_top_logprobs;                // of the row; 0 when not asked for
  std::vector<std::pair<int32_t, float>> top_logprobs;  // all rows' one after another, descending within a row

  std::vector<RequestKey> started;  // no column: solo sequences whose first step comes next, kStartedNotice later

  bool empty() const { return key.empty() && started.empty(); }
};

}  // namespace rtp_llm
