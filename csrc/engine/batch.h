// Batch: one step's inputs and results. Executor has two and uses them in turn, so that the host can
// fill one while the device reads the other.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device/device.h"
#include "device/ops.h"
#include "device/step_inputs.h"
#include "engine/scheduler.h"

namespace rtp_llm {

// What was sampled, [R] in the order of the chunks that sample.
struct SampledColumns {
  Tensor tokens, logprobs;          // [R] i32, f32; pinned memory
  Tensor top_tokens, top_logprobs;  // [R, kMaxLogprobs] i32, f32
};

struct Batch {
  // REQUIRES: device and slots outlive it.
  Batch(Device& device, const StepLimits& limits, const Slots& slots);

  void clear();
  void add(const Chunk& chunk);
  // Launches the copy of the most probable tokens to the host, if a sequence wants them. REQUIRES: sample() has been
  // launched.
  void download(Device& device);

  int64_t num_rows() const { return inputs.num_rows(); }
  int64_t num_samples() const { return inputs.num_samples(); }
  // What was sampled for the sample-th chunk that samples. REQUIRES: the step has ended.
  int32_t token(int64_t sample) const { return host.tokens.as<const int32_t>()[sample]; }

  std::vector<Chunk> chunks;
  StepInputs inputs;
  SampledColumns sampled;  // tokens and logprobs are the host's: a few bytes, which a copy would be slow for
  SampledColumns host;     // once the step has ended

 private:
  Buffer top_, pinned_;
  bool reports_top_ = false;  // a sequence wants more than its sampled tokens' logprobs
};

}  // namespace rtp_llm
