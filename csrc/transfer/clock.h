// The clock that the transfer thread, and what it is told, is stamped by.
#pragma once

#include <chrono>

#include "handover/times.h"

namespace rtp_llm {

inline Seconds monotonic_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace rtp_llm
