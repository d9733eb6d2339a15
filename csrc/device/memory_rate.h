// The machine's memory read rate: what decode speed is measured against.
#pragma once

#include <cstdint>

namespace rtp_llm {

// Bytes a second that `threads` threads read from `bytes` of touched memory, the best of `rounds`. Choose `bytes`
// well above the last-level cache.
double memory_read_rate(int64_t bytes, int threads, int rounds);

}  // namespace rtp_llm
