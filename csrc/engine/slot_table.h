// SlotTable: the slots on the device and the host's writes into them. A slot is bound when a sequence
// starts to run; after that its block table only grows, the kernels advance the rest.
#pragma once

#include <cstdint>

#include "device/device.h"
#include "device/slots.h"
#include "engine/engine.h"
#include "engine/sequence.h"

namespace rtp_llm {

class SlotTable {
 public:
  SlotTable(Device& device, const EngineConfig& config);

  const Slots& slots() const { return slots_; }
  int max_blocks() const { return max_blocks_; }

  // Writes what the device doesn't know of the sequence yet. REQUIRES: it has a slot.
  void bind(Sequence& sequence, const EngineConfig& config);
  // A slot as warm-up needs it: nothing stored, `blocks` as its table, greedy.
  void bind_blank(int slot, std::span<const int32_t> blocks);

 private:
  Tensor allocate(std::initializer_list<int64_t> shape, Buffer& buffer, const char* tag);
  void write(const Tensor& tensor, int64_t index, const int32_t* values, int64_t count);

  Device& device_;
  int max_blocks_;
  Buffer last_token_, seq_len_, output_position_, block_tables_, sampling_;
  Slots slots_;
};

}  // namespace rtp_llm
