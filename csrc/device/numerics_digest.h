// numerics_digest: every op of a backend on fixed inputs, its output bits folded into 64. Two engines whose digests
// differ compute differently somewhere, whatever their names say.
#pragma once

#include <cstdint>

#include "device/device.h"

namespace rtp_llm {

// Part of numerics_id. Runs at start-up, some milliseconds; leaves nothing allocated. REQUIRES: the device is idle.
uint64_t numerics_digest(Device& device, DType weight_dtype, DType kv_dtype);

}  // namespace rtp_llm
