#include "handover/types.h"

#include <cinttypes>
#include <cstdio>

namespace rtp_llm {

std::string RequestKey::str() const {
  char text[80];
  std::snprintf(text, sizeof text, "%016" PRIx64 "/%" PRIu64 "/%" PRIu32 "#%" PRIu32, router_epoch, request, choice,
                attempt);
  return text;
}

std::string WorkerKey::str() const {
  char text[32];
  std::snprintf(text, sizeof text, "@%016" PRIx64, epoch);
  return id + text;
}

}  // namespace rtp_llm
