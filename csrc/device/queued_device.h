// QueuedDevice: another device whose ops, copies and events run on a thread of their own, in order, behind the host, as
// an accelerator's main stream does. So every mistake in ordering (memory reused or read before its step has ended, a
// list that is gone when it is read) shows on any machine, with the thread sanitizer exactly.
//
// Allocations, packing, checksums, `copy` and `zero` go straight to the other device. An exception of launched work is
// thrown by the next wait, done or synchronize; what was launched behind it is dropped.
#pragma once

#include <cstdint>
#include <memory>

#include "device/device.h"

namespace rtp_llm {

struct QueuedDeviceOptions {
  // 0: work runs as soon as it can. Else it is delayed now and then, by up to max_delay_us, as seeded.
  uint64_t delay_seed = 0;
  int max_delay_us = 200;
};

std::unique_ptr<Device> make_queued_device(std::unique_ptr<Device> device, const QueuedDeviceOptions& options);

}  // namespace rtp_llm
