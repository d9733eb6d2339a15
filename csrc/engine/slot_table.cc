#include "engine/slot_table.h"

#include <vector>

#include "engine/sampling.h"
#include "kv/kv_layout.h"

namespace rtp_llm {

SlotTable::SlotTable(Device& device, const EngineConfig& config, int64_t vocab_size, int32_t scratch_block)
    : max_blocks_(blocks_for(config.max_model_len, config.block_tokens)) {
  const int64_t num_slots = int64_t{config.max_num_seqs} + 1;
  slots_.last_token = allocate(device, {num_slots}, last_token_, "slots.last_token");
  slots_.seq_len = allocate(device, {num_slots}, seq_len_, "slots.seq_len");
  slots_.output_position = allocate(device, {num_slots}, output_position_, "slots.output_position");
  slots_.block_tables = allocate(device, {num_slots, max_blocks_}, block_tables_, "slots.block_tables");
  sampling_ = device.allocate(num_slots * static_cast<int64_t>(sizeof(SamplingState)), "slots.sampling");
  slots_.sampling = static_cast<SamplingState*>(sampling_.data());
  slots_.token_words = allocate(device, {num_slots, vocab_size}, token_words_, "slots.token_words");
  biases_ = device.allocate(num_slots * kMaxTokenBiases * static_cast<int64_t>(sizeof(TokenBias)), "slots.biases");
  slots_.biases = static_cast<TokenBias*>(biases_.data());
  const std::vector<int32_t> scratch(static_cast<size_t>(max_blocks_), scratch_block);
  device.copy(slots_.block_tables.rows(slots_.padding_slot(), 1).data, scratch.data(), int64_t{max_blocks_} * 4);
}

void SlotTable::bind(Sequence& sequence, int first_token, const EngineConfig& config, StepInputs& inputs) const {
  const int total = static_cast<int>(sequence.blocks.size());
  if (total > max_blocks_)
    throw InvalidArgument(
        concat("sequence ", sequence.spec.key.str(), " has ", total, " blocks, a block table holds ", max_blocks_));
  if (sequence.num_bound_blocks == total) return;
  SlotUpdate& update = inputs.update(sequence.slot);
  if (sequence.num_bound_blocks < 0) {
    update.binds = 1;
    update.last_token = sequence.tokens.back();
    update.seq_len = first_token;
    update.output_position = sequence.num_output();
    update.sampling = sampling_state(sequence.spec, config.eos_token_ids);
    if (update.sampling.has_token_words != 0) add_token_words(sequence, update, inputs);
    sequence.num_bound_blocks = 0;
  }
  update.first_block = sequence.num_bound_blocks;
  for (int& known = sequence.num_bound_blocks; known < total; ++known) inputs.add_block(sequence.blocks[known]);
}

Tensor SlotTable::allocate(Device& device, std::initializer_list<int64_t> shape, Buffer& buffer, const char* tag) {
  int64_t count = 1;
  for (int64_t extent : shape) count *= extent;
  buffer = device.allocate(count * size_of(DType::kI32), tag);
  return make_tensor(buffer.data(), DType::kI32, shape);
}

}  // namespace rtp_llm
