// SlotTable: the slots on the device and the host's writes into them, which a step's inputs carry. A slot is bound when
// a sequence starts to run; after that its block table only grows, the kernels advance the rest.
#pragma once

#include <cstdint>

#include "device/device.h"
#include "device/slots.h"
#include "device/step_inputs.h"
#include "engine/engine_config.h"
#include "engine/sequence.h"

namespace rtp_llm {

class SlotTable {
 public:
  // config.max_num_seqs slots and the padding slot, whose table holds `scratch_block` only.
  SlotTable(Device& device, const EngineConfig& config, int64_t vocab_size, int32_t scratch_block);

  const Slots& slots() const { return slots_; }
  int max_blocks() const { return max_blocks_; }

  // Adds to the step's updates what the device doesn't know of the sequence yet, as it is before the step's rows, the
  // first of which is `first_token`. REQUIRES: it has a slot.
  void bind(Sequence& sequence, int first_token, const EngineConfig& config, StepInputs& inputs) const;

 private:
  Tensor allocate(Device& device, std::initializer_list<int64_t> shape, Buffer& buffer, const char* tag);

  int max_blocks_;
  Buffer last_token_, seq_len_, output_position_, block_tables_, sampling_, token_words_, biases_;
  Slots slots_;
};

}  // namespace rtp_llm
