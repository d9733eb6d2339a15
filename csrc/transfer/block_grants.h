// BlockGrants: the receiver's GrantPool over an engine's block pool and KV memory.
#pragma once

#include "device/device.h"
#include "handover/grant_pool.h"
#include "transfer/engine_port.h"

namespace rtp_llm {

// Thread rule: the transfer thread. REQUIRES: device and engine outlive it.
class BlockGrants : public GrantPool {
 public:
  BlockGrants(Device& device, EnginePort& engine) : device_(device), engine_(engine) {}

  std::optional<Room> grant(const SequenceSpec& spec) override;
  void join(const Room& room) override;
  void quarantine(const Room& room) override;
  void free_quarantined(const Room& room) override;

 private:
  void zero(std::span<const int32_t> blocks);

  Device& device_;
  EnginePort& engine_;
};

}  // namespace rtp_llm
