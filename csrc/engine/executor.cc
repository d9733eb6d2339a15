#include "engine/executor.h"

#include <algorithm>
#include <vector>

namespace rtp_llm {

Executor::Executor(Device& device, Decoder& decoder, const EngineConfig& config, int64_t max_rows)
    : device_(device),
      decoder_(decoder),
      config_(config),
      max_rows_(max_rows),
      kv_cache_(device, decoder.kv_layout(config.kv_dtype, config.block_tokens), config),
      slot_table_(device, config, kv_cache_.scratch_block()),
      batches_{{device, max_rows, config.max_num_seqs, most_block_ids(), slot_table_.slots()},
               {device, max_rows, config.max_num_seqs, most_block_ids(), slot_table_.slots()}} {
  decoder.allocate(max_rows, config.max_num_seqs, config.max_model_len);
  const int64_t bytes = device.ops().sample_workspace_bytes(config.max_num_seqs, decoder.config().vocab_size);
  workspace_ = device.allocate(bytes, "sample_workspace");
}

// Every table written whole, and as many fresh blocks.
int64_t Executor::most_block_ids() const {
  const int64_t tables = int64_t{config_.max_num_seqs} * slot_table_.max_blocks();
  return tables + std::min<int64_t>(tables, kv_cache_.num_blocks());
}

// All rows are prefill rows of token 0, dealt out to as many slots as they need; blocks repeat if the
// pool is small.
std::pair<int64_t, double> Executor::warm_up() {
  const int num_blocks =
      std::min(kv_cache_.num_blocks(),
               Sequence::blocks_for(static_cast<int>(max_rows_), config_.block_tokens) + config_.max_num_seqs);
  Batch& batch = batches_[0];
  batch.clear();
  int next_block = 0;
  for (int slot = 0; slot < config_.max_num_seqs && batch.num_rows() < max_rows_; ++slot) {
    const int64_t rows = std::min<int64_t>(config_.max_model_len, max_rows_ - batch.num_rows());
    const std::vector<int32_t> tokens(static_cast<size_t>(rows));
    batch.inputs.add(slot, tokens, Form::kPrefill, 0);
    batch.inputs.sample();
    SlotUpdate& update = batch.inputs.update(slot);
    update.binds = 1;
    update.sampling.temperature = 0;
    for (int i = 0; i < slot_table_.max_blocks(); ++i) batch.inputs.add_block(next_block++ % num_blocks);
  }
  const StreamEvent begin = device_.record();
  launch_inputs(batch);
  forward(batch, {});
  sample(batch);
  const StreamEvent end = device_.record();
  device_.wait(end);
  const double seconds = device_.seconds_between(begin, end);
  zero_first_blocks(std::min(next_block, num_blocks));
  return {batch.num_rows(), seconds};
}

// What the warm-up has written.
void Executor::zero_first_blocks(int num_blocks) {
  batches_[0].clear();
  for (int32_t block = 0; block < num_blocks; ++block) batches_[0].inputs.fresh(block);
  launch_inputs(batches_[0]);
  device_.synchronize();
}

Batch& Executor::prepare(const Schedule& schedule) {
  Batch& batch = batches_[next_batch_];
  next_batch_ = 1 - next_batch_;
  batch.clear();
  for (const Chunk& chunk : schedule.chunks) {
    slot_table_.bind(*chunk.sequence, config_, batch.inputs);
    batch.add(chunk);
  }
  // A masked position's weight is 0, and 0 * NaN is NaN: no bytes of an earlier owner may stay.
  for (const Chunk& chunk : schedule.chunks) {
    Sequence& sequence = *chunk.sequence;
    for (; sequence.num_clean_blocks < static_cast<int>(sequence.blocks.size()); ++sequence.num_clean_blocks)
      batch.inputs.fresh(sequence.blocks[sequence.num_clean_blocks]);
  }
  launch_inputs(batch);
  return batch;
}

void Executor::launch_inputs(Batch& batch) {
  batch.inputs.upload();
  batch.inputs.apply(kv_cache_.base(), kv_cache_.block_bytes());
}

void Executor::forward(Batch& batch, const std::function<void(int, int)>& on_layers) {
  const StepInput input{
      .tokens = batch.inputs.tokens(), .rows = &batch.inputs.rows(), .logit_rows = batch.inputs.logit_rows()};
  logits_ = decoder_.forward(input, kv_cache_.layout(), kv_cache_.base(), kv_cache_.num_blocks() + int64_t{1},
                             config_.layers_per_group, on_layers);
}

void Executor::sample(Batch& batch) {
  const int64_t count = batch.num_samples();
  if (count == 0) return;
  device_.ops().sample({.logits = logits_,
                        .step = &batch.inputs.rows(),
                        .tokens = batch.sampled.tokens.rows(0, count),
                        .logprobs = batch.sampled.logprobs.rows(0, count),
                        .top_tokens = batch.sampled.top_tokens.rows(0, count),
                        .top_logprobs = batch.sampled.top_logprobs.rows(0, count),
                        .workspace = make_tensor(workspace_.data(), DType::kU8, {workspace_.bytes()})});
  batch.download(device_);
}

}  // namespace rtp_llm
