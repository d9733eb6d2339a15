// SlotPool: how many of an engine's slots (max_num_seqs) are taken, and by whose sequences. Counts only: which slot of
// the device a running sequence has is the scheduler's.
//
// A sequence of the engine's queue takes a slot when its turn has come, a handover takes one with its grant. Either
// holds it to the end of the sequence, preempted or not; a sender's ends when it has sampled, a grant's when it is
// void. Who stands first in the engine's queue and finds none claims the next that becomes free: grants wait behind it.
//
// Thread rule: any thread; one short mutex. Whoever gives a slot back tells those that wait (BlockPool::on_room does).
#pragma once

#include <cstdint>
#include <map>
#include <mutex>

namespace rtp_llm {

struct SlotCounts {
  int total = 0, taken = 0;
  std::map<uint64_t, int> taken_by;  // router epoch -> slots that its sequences hold
};

class SlotPool {
 public:
  explicit SlotPool(int num_slots);

  // For the first of the engine's queue. False: none is free, the next one is claimed.
  bool admit(uint64_t router_epoch);
  // Who claimed a slot is gone.
  void withdraw_claim();
  // For a grant. False: none is free but what is claimed.
  bool grant(uint64_t router_epoch);
  // REQUIRES: a sequence of this router holds one; else throws InvalidArgument.
  void give_back(uint64_t router_epoch);

  SlotCounts counts() const;

 private:
  mutable std::mutex mutex_;
  SlotCounts counts_;
  bool claimed_ = false;
};

}  // namespace rtp_llm
