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

// What was sampled, [R] in the order of the chunks that sample. Views of device or of pinned memory.
struct SampledColumns {
  Tensor tokens, logprobs;          // [R] i32, f32
  Tensor top_tokens, top_logprobs;  // [R, kMaxLogprobs] i32, f32
};

struct Batch {
  // At most max_rows rows of at most max_seqs sequences. REQUIRES: device and slots outlive it.
  Batch(Device& device, int64_t max_rows, int64_t max_seqs, int64_t max_block_ids, const Slots& slots);

  void clear();
  void add(const Chunk& chunk);
  // Launches the copy of what was sampled to the host. REQUIRES: sample() has been launched.
  void download(Device& device);

  int64_t num_rows() const { return inputs.num_rows(); }
  int64_t num_samples() const { return inputs.num_samples(); }
  // What was sampled for the sample-th chunk that samples. REQUIRES: the download is done.
  int32_t token(int64_t sample) const { return host.tokens.as<const int32_t>()[sample]; }

  std::vector<Chunk> chunks;
  StepInputs inputs;
  SampledColumns sampled;  // device memory
  SampledColumns host;     // pinned memory, once the download is done

 private:
  Buffer buffer_, pinned_;
  bool reports_top_ = false;  // a sequence wants more than its sampled tokens' logprobs
};

}  // namespace rtp_llm
