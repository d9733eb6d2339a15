#include "engine/batch.h"

namespace rtp_llm {

namespace {

// Bytes of a sample without the most probable tokens, and of those.
constexpr int64_t kSampleBytes = 2 * 4, kTopBytes = 2 * kMaxLogprobs * 4;

// [rows, columns...] twice from `base` on: i32, f32.
void carve(void* base, std::initializer_list<int64_t> shape, Tensor& ids, Tensor& values) {
  ids = make_tensor(base, DType::kI32, shape);
  values = make_tensor(ids.as<int32_t>() + ids.numel(), DType::kF32, shape);
}

}  // namespace

Batch::Batch(Device& device, const StepLimits& limits, const Slots& slots)
    : inputs(device, limits, slots),
      top_(device.allocate(limits.segments * kTopBytes, "batch.sampled")),
      pinned_(device.allocate_pinned(limits.segments * (kSampleBytes + kTopBytes), "batch.sampled.pinned")) {
  const int64_t max_seqs = limits.segments;
  chunks.reserve(max_seqs);
  carve(pinned_.data(), {max_seqs}, host.tokens, host.logprobs);
  carve(static_cast<uint8_t*>(pinned_.data()) + max_seqs * kSampleBytes, {max_seqs, kMaxLogprobs}, host.top_tokens,
        host.top_logprobs);
  sampled = {.tokens = host.tokens, .logprobs = host.logprobs, .top_tokens = {}, .top_logprobs = {}};
  carve(top_.data(), {max_seqs, kMaxLogprobs}, sampled.top_tokens, sampled.top_logprobs);
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
  if (reports_top_) device.copy_async(host.top_tokens.data, sampled.top_tokens.data, top_.bytes());
}

}  // namespace rtp_llm
