#include "engine/executor.h"

#include <algorithm>
#include <vector>

#include "engine/sampling.h"

namespace rtp_llm {

Executor::Executor(Device& device, Decoder& decoder, const EngineConfig& config)
    : device_(device),
      decoder_(decoder),
      config_(config),
      max_rows_(config.max_step_rows()),
      max_graph_rows_(config.max_num_seqs),
      kv_cache_(device, decoder.kv_layout(config.kv_dtype, config.block_tokens), config),
      slot_table_(device, config, decoder.config().vocab_size, kv_cache_.scratch_block()),
      batches_{{device, step_limits(), slot_table_.slots()}, {device, step_limits(), slot_table_.slots()}} {
  decoder.allocate(max_rows_, config.max_num_seqs, config.max_model_len);
  const int64_t bytes = device.ops().sample_workspace_bytes(config.max_num_seqs, decoder.config().vocab_size);
  workspace_ = device.allocate(bytes, "sample_workspace");
}

// Every table written whole, and as many fresh blocks. The scheduler keeps to the words.
StepLimits Executor::step_limits() const {
  const int64_t tables = int64_t{config_.max_num_seqs} * slot_table_.max_blocks();
  return {.rows = max_rows_,
          .segments = config_.max_num_seqs,
          .block_ids = tables + std::min<int64_t>(tables, kv_cache_.num_blocks()),
          .words = max_token_words(config_)};
}

// All rows are prefill rows of token 0, dealt out to as many slots as they need; blocks repeat if the
// pool is small.
std::pair<int64_t, double> Executor::warm_up() {
  const int num_blocks = std::min(kv_cache_.num_blocks(),
                                  blocks_for(static_cast<int>(max_rows_), config_.block_tokens) + config_.max_num_seqs);
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
  warm_up_graphs();
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
    slot_table_.bind(*chunk.sequence, chunk.first_token, config_, batch.inputs);
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
  if (const int64_t rows = graph_rows(batch)) return replay(batch, rows);
  launch_forward(batch, batch.inputs.rows(), batch.num_samples(), on_layers);
}

void Executor::sample(Batch& batch) {
  if (batch.num_samples() == 0) return;
  if (graph_rows(batch) == 0) launch_sample(batch, batch.inputs.rows(), batch.num_samples());
  batch.download(device_);
}

void Executor::launch_forward(Batch& batch, const StepRows& rows, int64_t num_samples,
                              const std::function<void(int, int)>& on_layers) {
  const StepInput input{.tokens = batch.inputs.padded_tokens(rows.num_rows),
                        .rows = &rows,
                        .logit_rows = batch.inputs.padded_logit_rows(num_samples)};
  logits_ = decoder_.forward(input, kv_cache_.layout(), kv_cache_.base(), kv_cache_.num_blocks() + int64_t{1},
                             config_.layers_per_message, on_layers);
}

void Executor::launch_sample(Batch& batch, const StepRows& rows, int64_t num_samples) {
  device_.ops().sample({.logits = logits_,
                        .step = &rows,
                        .tokens = batch.sampled.tokens.rows(0, num_samples),
                        .logprobs = batch.sampled.logprobs.rows(0, num_samples),
                        .top_tokens = batch.sampled.top_tokens.rows(0, num_samples),
                        .top_logprobs = batch.sampled.top_logprobs.rows(0, num_samples),
                        .workspace = make_tensor(workspace_.data(), DType::kU8, {workspace_.bytes()})});
}

// ---- Graphs

namespace {

// 1, 2, 4, 8, then every 8 up to 64, every 16 beyond: what is padded costs little beside the weights.
int64_t bucket_of(int64_t rows, int64_t most) {
  int64_t bucket = 1;
  while (bucket < rows) bucket = bucket < 8 ? 2 * bucket : bucket + (bucket < 64 ? 8 : 16);
  return std::min(bucket, most);
}

}  // namespace

int64_t Executor::graph_rows(const Batch& batch) const {
  if (!device_.has_graphs() || batch.num_rows() == 0 || batch.num_rows() > max_graph_rows_) return 0;
  for (const Chunk& chunk : batch.chunks)
    if (chunk.form != Form::kDecode || chunk.rows != 1 || !chunk.samples || chunk.sequence->role == Role::kSender)
      return 0;
  return bucket_of(batch.num_rows(), max_graph_rows_);
}

void Executor::replay(Batch& batch, int64_t rows) {
  const uint64_t key = static_cast<uint64_t>(rows) * 2 + static_cast<uint64_t>(&batch - batches_);
  const auto launch = [&] {
    const StepRows& padded = batch.inputs.padded(rows);
    launch_forward(batch, padded, rows, {});
    launch_sample(batch, padded, rows);
  };
  device_.replay(key, std::cref(launch));  // a function of its own would take memory
}

// Records every graph, over steps that have padding rows only.
void Executor::warm_up_graphs() {
  if (!device_.has_graphs()) return;
  for (Batch& batch : batches_) {
    batch.clear();
    batch.inputs.upload();
    for (int64_t rows = 1;; rows = bucket_of(rows + 1, max_graph_rows_)) {
      replay(batch, rows);
      if (rows == max_graph_rows_) break;
    }
  }
  device_.synchronize();
}

}  // namespace rtp_llm
