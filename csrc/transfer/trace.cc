#include "transfer/trace.h"

namespace rtp_llm {

std::string_view name_of(TracePoint point) {
  switch (point) {
    case TracePoint::kScheduled: return "scheduled";
    case TracePoint::kLayersComputed: return "layers_computed";
    case TracePoint::kGranted: return "granted";
    case TracePoint::kPosted: return "posted";
    case TracePoint::kSent: return "sent";
    case TracePoint::kFirstToken: return "first_token";
    case TracePoint::kCommitSent: return "commit_sent";
    case TracePoint::kAccepted: return "accepted";
    case TracePoint::kReceived: return "received";
    case TracePoint::kCommitted: return "committed";
  }
  return "?";
}

}  // namespace rtp_llm
