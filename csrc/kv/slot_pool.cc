#include "kv/slot_pool.h"

#include "tensor/check.h"

namespace rtp_llm {

using Lock = std::lock_guard<std::mutex>;

SlotPool::SlotPool(int num_slots) {
  check(num_slots > 0, "num_slots must be positive, got ", num_slots);
  counts_.total = num_slots;
}

bool SlotPool::admit(uint64_t router_epoch) {
  Lock lock(mutex_);
  claimed_ = counts_.taken == counts_.total;
  if (claimed_) return false;
  ++counts_.taken;
  ++counts_.taken_by[router_epoch];
  return true;
}

void SlotPool::withdraw_claim() {
  Lock lock(mutex_);
  claimed_ = false;
}

bool SlotPool::grant(uint64_t router_epoch) {
  Lock lock(mutex_);
  if (counts_.taken + claimed_ >= counts_.total) return false;
  ++counts_.taken;
  ++counts_.taken_by[router_epoch];
  return true;
}

void SlotPool::give_back(uint64_t router_epoch) {
  Lock lock(mutex_);
  const auto held = counts_.taken_by.find(router_epoch);
  check(held != counts_.taken_by.end(), "router ", router_epoch, " holds no slot");
  if (--held->second == 0) counts_.taken_by.erase(held);
  --counts_.taken;
}

SlotCounts SlotPool::counts() const {
  Lock lock(mutex_);
  return counts_;
}

}  // namespace rtp_llm
