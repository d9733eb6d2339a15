#include "engine/executor.h"

#include <algorithm>
#include <chrono>
#include <numeric>

namespace rtp_llm {

Executor::Executor(Device& device, Decoder& decoder, const EngineConfig& config, int64_t max_rows)
    : device_(device),
      decoder_(decoder),
      config_(config),
      max_rows_(max_rows),
      kv_cache_(device, decoder.kv_layout(config.kv_dtype, config.block_tokens), config),
      slot_table_(device, config),
      batches_{{device, max_rows, config.max_num_seqs}, {device, max_rows, config.max_num_seqs}} {
  decoder.allocate(max_rows, config.max_num_seqs, config.max_model_len);
  const int64_t bytes = device.ops().sample_workspace_bytes(config.max_num_seqs, decoder.config().vocab_size);
  workspace_ = device.allocate(bytes, "sample_workspace");
}

// All rows are prefill rows of token 0, dealt out to as many slots as they need; blocks repeat if the
// pool is small.
std::pair<int64_t, double> Executor::warm_up() {
  const int num_blocks =
      std::min(kv_cache_.num_blocks(),
               Sequence::blocks_for(static_cast<int>(max_rows_), config_.block_tokens) + config_.max_num_seqs);
  std::vector<int32_t> blocks(slot_table_.max_blocks());
  Batch& batch = batches_[0];
  batch.clear();
  int next_block = 0;
  for (int slot = 0; slot < config_.max_num_seqs && batch.num_rows() < max_rows_; ++slot) {
    const auto rows = static_cast<int32_t>(std::min<int64_t>(config_.max_model_len, max_rows_ - batch.num_rows()));
    for (int32_t& block : blocks) block = next_block++ % num_blocks;
    slot_table_.bind_blank(slot, blocks);
    batch.segments.push_back({.slot = slot, .first_row = static_cast<int32_t>(batch.num_rows()), .rows = rows});
    batch.tokens.resize(batch.tokens.size() + rows, 0);
    batch.sample_rows.push_back({.slot = slot, .row = slot});
    batch.logit_rows.push_back(static_cast<int32_t>(batch.num_rows()) - 1);
  }
  const auto begin = std::chrono::steady_clock::now();
  batch.upload(device_);
  forward(batch, {});
  sample(batch);
  batch.download(device_);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  for (int32_t block = 0; block < num_blocks; ++block) kv_cache_.zero_block(block);
  return {batch.num_rows(), seconds.count()};
}

Batch& Executor::prepare(const Schedule& schedule) {
  Batch& batch = batches_[next_batch_];
  next_batch_ = 1 - next_batch_;
  batch.clear();
  for (const Chunk& chunk : schedule.chunks) {
    Sequence& sequence = *chunk.sequence;
    // A masked position's weight is 0, and 0 * NaN is NaN: no bytes of an earlier owner may stay.
    for (; sequence.num_clean_blocks < static_cast<int>(sequence.blocks.size()); ++sequence.num_clean_blocks)
      kv_cache_.zero_block(sequence.blocks[sequence.num_clean_blocks]);
    slot_table_.bind(sequence, config_);
    batch.add(chunk);
  }
  batch.upload(device_);
  return batch;
}

void Executor::forward(Batch& batch, const std::function<void(int, int)>& on_layers) {
  const StepInput input{.tokens = batch.device_tokens.rows(0, batch.num_rows()),
                        .segments = batch.segments,
                        .logit_rows = batch.device_logit_rows.rows(0, batch.num_samples())};
  logits_ = decoder_.forward(input, slot_table_.slots(), kv_cache_.layout(), kv_cache_.base(), kv_cache_.num_blocks(),
                             config_.layers_per_group, on_layers);
}

void Executor::sample(Batch& batch) {
  const int64_t count = batch.num_samples();
  if (count == 0) return;
  device_.ops().sample({.logits = logits_,
                        .rows = batch.sample_rows,
                        .slots = &slot_table_.slots(),
                        .tokens = batch.sampled.rows(0, count),
                        .logprobs = batch.logprobs.rows(0, count),
                        .top_tokens = batch.top_tokens.rows(0, count),
                        .top_logprobs = batch.top_logprobs.rows(0, count),
                        .workspace = make_tensor(workspace_.data(), DType::kU8, {workspace_.bytes()})});
}

}  // namespace rtp_llm
