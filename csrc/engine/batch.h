// Batch: one step's inputs and results. Executor has two and uses them in turn, so that the host can
// fill one while the device reads the other.
#pragma once

#include <cstdint>
#include <vector>

#include "device/device.h"
#include "device/ops.h"
#include "engine/scheduler.h"

namespace rtp_llm {

struct Batch {
  // At most max_rows rows of which max_samples are sampled.
  Batch(Device& device, int64_t max_rows, int64_t max_samples);

  void clear();
  void add(const Chunk& chunk);
  // Copies tokens and logit rows to the device.
  void upload(Device& device);
  // Copies what was sampled to the host. REQUIRES: sample() has been launched.
  void download(Device& device);

  int64_t num_rows() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_samples() const { return static_cast<int64_t>(sample_rows.size()); }

  // M rows, R samples.
  std::vector<Chunk> chunks;
  std::vector<Segment> segments;
  std::vector<int32_t> tokens;         // [M]
  std::vector<int32_t> logit_rows;     // [R]
  std::vector<SampleRow> sample_rows;  // [R], in the order of the chunks that sample
  Tensor device_tokens, device_logit_rows;

  Tensor sampled, logprobs, top_tokens, top_logprobs;  // device: [R], [R], [R, kMaxLogprobs] twice
  std::vector<int32_t> host_sampled, host_top_tokens;
  std::vector<float> host_logprobs, host_top_logprobs;

 private:
  Buffer buffer_;
};

}  // namespace rtp_llm
