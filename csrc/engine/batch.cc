#include "engine/batch.h"

namespace rtp_llm {

namespace {

// Bytes of a sample without, and with, the most probable tokens.
constexpr int64_t kSampleBytes = 2 * 4, kTopBytes = 2 * kMaxLogprobs * 4;

SampledColumns carve(void* base, int64_t rows) {
  auto* at = static_cast<int32_t*>(base);
  const auto take = [&](DType dtype, std::initializer_list<int64_t> shape) {
    const Tensor tensor = make_tensor(at, dtype, shape);
    at += tensor.numel();
    return tensor;
  };
  SampledColumns columns;  // the columns that every step downloads first
  columns.tokens = take(DType::kI32, {rows});
  columns.logprobs = take(DType::kF32, {rows});
  columns.top_tokens = take(DType::kI32, {rows, kMaxLogprobs});
  columns.top_logprobs = take(DType::kF32, {rows, kMaxLogprobs});
  return columns;
}

}  // namespace

Batch::Batch(Device& device, int64_t max_rows, int64_t max_seqs, int64_t max_block_ids, const Slots& slots)
    : inputs(device, {.rows = max_rows, .segments = max_seqs, .block_ids = max_block_ids}, slots),
      buffer_(device.allocate(max_seqs * (kSampleBytes + kTopBytes), "batch.sampled")),
      pinned_(device.allocate_pinned(max_seqs * (kSampleBytes + kTopBytes), "batch.sampled.pinned")) {
  chunks.reserve(max_seqs);
  sampled = carve(buffer_.data(), max_seqs);
  host = carve(pinned_.data(), max_seqs);
}

void Batch::clear() {
  chunks.clear();
  inputs.clear();
  reports_top_ = false;
}

void Batch::add(const Chunk& chunk) {
  const Sequence& sequence = *chunk.sequence;
  chunks.push_back(chunk);
  const auto known = std::span(sequence.tokens);
  inputs.add(sequence.slot, chunk.decode ? std::span(&kTokenFromSlot, 1) : known.subspan(chunk.first_token, chunk.rows),
             chunk.form, chunk.first_token);
  if (!chunk.samples) return;
  inputs.sample();
  reports_top_ |= sequence.spec.sampling.logprobs > 0;
}

void Batch::download(Device& device) {
  if (num_samples() == 0) return;
  const int64_t bytes = sampled.tokens.shape[0] * (reports_top_ ? kSampleBytes + kTopBytes : kSampleBytes);
  device.copy_async(host.tokens.data, sampled.tokens.data, bytes);
}

}  // namespace rtp_llm
