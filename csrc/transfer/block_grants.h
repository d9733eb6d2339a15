// BlockGrants: the receiver's GrantPool over an engine's block pool, slots and KV memory.
#pragma once

#include "device/device.h"
#include "handover/grant_pool.h"
#include "transfer/engine_port.h"

namespace rtp_llm {

// Thread rule: the transfer thread. REQUIRES: device and engine outlive it.
class BlockGrants : public GrantPool {
 public:
  BlockGrants(Device& device, EnginePort& engine) : device_(device), engine_(engine) {}

  Want want(std::shared_ptr<const SequenceSpec> spec) const override;
  std::optional<Reservation> grant(const Want& want) override;
  void join(const Reservation& reservation) override;
  void quarantine(const Reservation& reservation) override;
  void free_quarantined(const Reservation& reservation) override;

 private:
  void zero(std::span<const int32_t> blocks);
  void ended(const Reservation& reservation);  // the engine counts its sequence now, or it is over

  Device& device_;
  EnginePort& engine_;
  BlockDemand promised_;  // of the grants that stand
};

}  // namespace rtp_llm
