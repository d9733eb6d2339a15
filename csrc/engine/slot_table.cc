#include "engine/slot_table.h"

#include "engine/sampling.h"

namespace rtp_llm {

SlotTable::SlotTable(Device& device, const EngineConfig& config)
    : device_(device), max_blocks_(Sequence::blocks_for(config.max_model_len, config.block_tokens)) {
  const int64_t num_slots = config.max_num_seqs;
  slots_.last_token = allocate({num_slots}, last_token_, "slots.last_token");
  slots_.seq_len = allocate({num_slots}, seq_len_, "slots.seq_len");
  slots_.output_position = allocate({num_slots}, output_position_, "slots.output_position");
  slots_.block_tables = allocate({num_slots, max_blocks_}, block_tables_, "slots.block_tables");
  sampling_ = device.allocate(num_slots * static_cast<int64_t>(sizeof(SamplingState)), "slots.sampling");
  slots_.sampling = static_cast<SamplingState*>(sampling_.data());
}

void SlotTable::bind(Sequence& sequence, const EngineConfig& config) {
  const int slot = sequence.slot;
  if (sequence.num_bound_blocks < 0) {
    const int32_t last_token = sequence.tokens.back();
    const int32_t seq_len = sequence.num_computed;
    const int32_t position = sequence.num_output();
    write(slots_.last_token, slot, &last_token, 1);
    write(slots_.seq_len, slot, &seq_len, 1);
    write(slots_.output_position, slot, &position, 1);
    const SamplingState state = sampling_state(sequence.spec, config.eos_token_ids);
    device_.copy(slots_.sampling + slot, &state, sizeof state);
    sequence.num_bound_blocks = 0;
  }
  const int known = sequence.num_bound_blocks;
  const int total = static_cast<int>(sequence.blocks.size());
  check(total <= max_blocks_, "sequence ", sequence.spec.key.str(), " has ", total, " blocks, a block table holds ",
        max_blocks_);
  if (known == total) return;
  write(slots_.block_tables, int64_t{slot} * max_blocks_ + known, sequence.blocks.data() + known, total - known);
  sequence.num_bound_blocks = total;
}

void SlotTable::bind_blank(int slot, std::span<const int32_t> blocks) {
  const int32_t zero = 0;
  const SamplingState greedy{.temperature = 0};
  write(slots_.last_token, slot, &zero, 1);
  write(slots_.seq_len, slot, &zero, 1);
  write(slots_.output_position, slot, &zero, 1);
  device_.copy(slots_.sampling + slot, &greedy, sizeof greedy);
  write(slots_.block_tables, int64_t{slot} * max_blocks_, blocks.data(), static_cast<int64_t>(blocks.size()));
}

Tensor SlotTable::allocate(std::initializer_list<int64_t> shape, Buffer& buffer, const char* tag) {
  int64_t count = 1;
  for (int64_t extent : shape) count *= extent;
  buffer = device_.allocate(count * size_of(DType::kI32), tag);
  return make_tensor(buffer.data(), DType::kI32, shape);
}

void SlotTable::write(const Tensor& tensor, int64_t index, const int32_t* values, int64_t count) {
  device_.copy(tensor.as<int32_t>() + index, values, count * size_of(DType::kI32));
}

}  // namespace rtp_llm
