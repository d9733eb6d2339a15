#include "model/scorer.h"

#include <numeric>

#include "tensor/check.h"

namespace rtp_llm {

Scorer::Scorer(Device& device, Decoder& decoder, const ScorerOptions& options)
    : device_(device),
      decoder_(decoder),
      options_(options),
      layout_(decoder.kv_layout(options.kv_dtype, options.block_tokens)),
      num_blocks_((options.max_tokens + options.block_tokens - 1) / options.block_tokens) {
  check(options.max_tokens > 0, "max_tokens must be positive, got ", options.max_tokens);
  check(options.chunk_tokens > 0, "chunk_tokens must be positive, got ", options.chunk_tokens);
  decoder.allocate(options.chunk_tokens, options.chunk_tokens, options.max_tokens);
  kv_pool_ = add_buffer("scorer.kv_pool", DType::kU8, num_blocks_ * layout_.groups[0].block_bytes());
  tokens_ = add_buffer("scorer.tokens", DType::kI32, options.chunk_tokens);
  logit_rows_ = add_buffer("scorer.logit_rows", DType::kI32, options.chunk_tokens);
  slots_.last_token = add_buffer("scorer.last_token", DType::kI32, 1);
  slots_.seq_len = add_buffer("scorer.seq_len", DType::kI32, 1);
  slots_.output_position = add_buffer("scorer.output_position", DType::kI32, 1);
  slots_.block_tables = add_buffer("scorer.block_tables", DType::kI32, num_blocks_);
  slots_.block_tables = make_tensor(slots_.block_tables.data, DType::kI32, {1, num_blocks_});

  std::vector<int32_t> ids(std::max(num_blocks_, options.chunk_tokens));
  std::iota(ids.begin(), ids.end(), 0);
  device_.copy(slots_.block_tables.data, ids.data(), num_blocks_ * 4);
  device_.copy(logit_rows_.data, ids.data(), options.chunk_tokens * 4);
}

std::vector<float> Scorer::logits(std::span<const int32_t> tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  const int64_t vocab = decoder_.config().vocab_size;
  check(count > 0 && count <= options_.max_tokens, "a scorer takes 1 to ", options_.max_tokens, " tokens, got ", count);
  for (int32_t token : tokens)
    check(token >= 0 && token < vocab, "token id ", token, " out of range, the vocabulary has ", vocab);
  device_.zero(slots_.seq_len.data, 4);
  device_.zero(kv_pool_.data, kv_pool_.numel());

  std::vector<float> all(count * vocab);
  for (int64_t first = 0; first < count; first += options_.chunk_tokens) {
    const int64_t rows = std::min(options_.chunk_tokens, count - first);
    const Segment segment{.slot = 0, .first_row = 0, .rows = static_cast<int32_t>(rows), .form = Form::kPrefill};
    device_.copy(tokens_.data, tokens.data() + first, rows * 4);
    const Tensor logits = decoder_.forward(
        {.tokens = tokens_.rows(0, rows), .segments = {&segment, 1}, .logit_rows = logit_rows_.rows(0, rows)}, slots_,
        layout_, kv_pool_.data, num_blocks_, decoder_.config().num_hidden_layers, {});
    device_.copy(all.data() + first * vocab, logits.data, rows * vocab * 4);
  }
  return all;
}

Tensor Scorer::add_buffer(const char* tag, DType dtype, int64_t elements) {
  buffers_.push_back(device_.allocate(elements * size_of(dtype), tag));
  return make_tensor(buffers_.back().data(), dtype, {elements});
}

}  // namespace rtp_llm
