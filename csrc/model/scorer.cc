#include "model/scorer.h"

#include <numeric>

#include "tensor/check.h"

namespace rtp_llm {

Scorer::Scorer(Device& device, Decoder& decoder, const ScorerOptions& options)
    : device_(device),
      decoder_(decoder),
      options_(options),
      layout_(decoder.kv_layout(options.kv_dtype, options.block_tokens)),
      num_blocks_(blocks_for(options.max_tokens, options.block_tokens)) {
  check(options.max_tokens > 0, "max_tokens must be positive, got ", options.max_tokens);
  check(options.chunk_tokens > 0, "chunk_tokens must be positive, got ", options.chunk_tokens);
  decoder.allocate(options.chunk_tokens, options.chunk_tokens, options.max_tokens);
  kv_pool_ = add_buffer("scorer.kv_pool", DType::kU8, (num_blocks_ + 1) * layout_.groups[0].block_bytes());
  all_rows_ = add_buffer("scorer.all_rows", DType::kI32, options.chunk_tokens);
  std::vector<int32_t> rows(static_cast<size_t>(options.chunk_tokens));
  std::iota(rows.begin(), rows.end(), 0);
  device_.copy(all_rows_.data, rows.data(), options.chunk_tokens * 4);
  slots_.last_token = add_buffer("scorer.last_token", DType::kI32, 2);
  slots_.seq_len = add_buffer("scorer.seq_len", DType::kI32, 2);
  slots_.output_position = add_buffer("scorer.output_position", DType::kI32, 2);
  slots_.block_tables = add_buffer("scorer.block_tables", DType::kI32, 2 * num_blocks_);
  slots_.block_tables = make_tensor(slots_.block_tables.data, DType::kI32, {2, num_blocks_});
  slots_.sampling = static_cast<SamplingState*>(
      add_buffer("scorer.sampling", DType::kU8, 2 * static_cast<int64_t>(sizeof(SamplingState))).data);
  const std::vector<int32_t> scratch(static_cast<size_t>(num_blocks_), static_cast<int32_t>(num_blocks_));
  device_.copy(slots_.block_tables.rows(1, 1).data, scratch.data(), num_blocks_ * 4);
  inputs_.emplace(device_, StepLimits{.rows = options.chunk_tokens, .segments = 1, .block_ids = num_blocks_}, slots_);
}

std::vector<float> Scorer::logits(std::span<const int32_t> tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  const int64_t vocab = decoder_.config().vocab_size;
  check(count > 0 && count <= options_.max_tokens, "a scorer takes 1 to ", options_.max_tokens, " tokens, got ", count);
  for (int32_t token : tokens)
    check(token >= 0 && token < vocab, "token id ", token, " out of range, the vocabulary has ", vocab);
  device_.zero(kv_pool_.data, kv_pool_.numel());

  std::vector<float> all(count * vocab);
  for (int64_t first = 0; first < count; first += options_.chunk_tokens) {
    const int64_t rows = std::min(options_.chunk_tokens, count - first);
    inputs_->clear();
    inputs_->add(0, tokens.subspan(first, rows), Form::kPrefill, first);
    if (first == 0) bind();
    inputs_->upload();
    inputs_->apply(kv_pool_.as<uint8_t>(), layout_.groups[0].block_bytes());
    const Tensor logits =
        decoder_.forward({.tokens = inputs_->tokens(), .rows = &inputs_->rows(), .logit_rows = all_rows_.rows(0, rows)},
                         layout_, kv_pool_.data, num_blocks_ + 1, decoder_.config().num_hidden_layers, {});
    device_.synchronize();
    device_.copy(all.data() + first * vocab, logits.data, rows * vocab * 4);
  }
  return all;
}

// A new sequence in the slot, over all blocks.
void Scorer::bind() {
  inputs_->update(0).binds = 1;
  for (int32_t block = 0; block < num_blocks_; ++block) inputs_->add_block(block);
}

Tensor Scorer::add_buffer(const char* tag, DType dtype, int64_t elements) {
  buffers_.push_back(device_.allocate(elements * size_of(dtype), tag));
  return make_tensor(buffers_.back().data(), dtype, {elements});
}

}  // namespace rtp_llm
