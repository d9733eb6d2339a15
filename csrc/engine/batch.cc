#include "engine/batch.h"

namespace rtp_llm {

Batch::Batch(Device& device, int64_t max_rows, int64_t max_samples)
    : host_sampled(max_samples),
      host_top_tokens(max_samples * kMaxLogprobs),
      host_logprobs(max_samples),
      host_top_logprobs(max_samples * kMaxLogprobs) {
  chunks.reserve(max_samples);
  segments.reserve(max_samples);
  tokens.reserve(max_rows);
  logit_rows.reserve(max_samples);
  sample_rows.reserve(max_samples);
  const int64_t words = max_rows + max_samples * (3 + 2 * kMaxLogprobs);
  buffer_ = device.allocate(words * 4, "batch");
  auto* at = static_cast<int32_t*>(buffer_.data());
  const auto carve = [&](DType dtype, int64_t rows, int64_t width) {
    const Tensor tensor = width == 0 ? make_tensor(at, dtype, {rows}) : make_tensor(at, dtype, {rows, width});
    at += tensor.numel();
    return tensor;
  };
  device_tokens = carve(DType::kI32, max_rows, 0);
  device_logit_rows = carve(DType::kI32, max_samples, 0);
  sampled = carve(DType::kI32, max_samples, 0);
  logprobs = carve(DType::kF32, max_samples, 0);
  top_tokens = carve(DType::kI32, max_samples, kMaxLogprobs);
  top_logprobs = carve(DType::kF32, max_samples, kMaxLogprobs);
}

void Batch::clear() {
  chunks.clear();
  segments.clear();
  tokens.clear();
  logit_rows.clear();
  sample_rows.clear();
}

void Batch::add(const Chunk& chunk) {
  const Sequence& sequence = *chunk.sequence;
  chunks.push_back(chunk);
  segments.push_back({.slot = sequence.slot,
                      .first_row = static_cast<int32_t>(tokens.size()),
                      .rows = chunk.rows,
                      .form = chunk.form});
  if (chunk.decode) {
    tokens.push_back(kTokenFromSlot);
  } else {
    const auto first = sequence.tokens.begin() + chunk.first_token;
    tokens.insert(tokens.end(), first, first + chunk.rows);
  }
  if (!chunk.samples) return;
  sample_rows.push_back({.slot = sequence.slot, .row = static_cast<int32_t>(logit_rows.size())});
  logit_rows.push_back(static_cast<int32_t>(tokens.size()) - 1);
}

void Batch::upload(Device& device) {
  device.copy(device_tokens.data, tokens.data(), num_rows() * 4);
  device.copy(device_logit_rows.data, logit_rows.data(), num_samples() * 4);
}

void Batch::download(Device& device) {
  device.synchronize();
  const int64_t count = num_samples();
  device.copy(host_sampled.data(), sampled.data, count * 4);
  device.copy(host_logprobs.data(), logprobs.data, count * 4);
  device.copy(host_top_tokens.data(), top_tokens.data, count * kMaxLogprobs * 4);
  device.copy(host_top_logprobs.data(), top_logprobs.data, count * kMaxLogprobs * 4);
}

}  // namespace rtp_llm
