// HandoverFigures: what a worker's handovers have come to: totals, and the trace of when their parts happened.
//
// Thread rule: the transfer thread. `now` is the time of what it is told.
#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>

#include "handover/actions.h"
#include "transfer/trace.h"

namespace rtp_llm {

struct HandoverTotals {
  double send_seconds = 0;     // of committed handovers, from the first message posted to Committed
  double receive_seconds = 0;  // from the first message accepted to the join
  uint64_t committed_sent = 0, committed_received = 0;
  uint64_t prefix_hit_tokens = 0;                       // of committed handovers: in this receiver's cache, so not sent
  uint64_t no_room = 0, expired = 0, bad_checksum = 0;  // said here as receiver
};

class HandoverFigures {
 public:
  explicit HandoverFigures(size_t trace_entries) : trace_(trace_entries) {}

  Trace& trace() { return trace_; }
  const HandoverTotals& totals() const { return totals_; }

  // As sender.
  void posted(const RequestKey& key, Seconds now) { first_posted_.try_emplace(key, now); }
  void said(const message::FromSender& body, Seconds now);
  void heard(const message::FromReceiver& body, Seconds now);
  void released(const RequestKey& key) { first_posted_.erase(key); }

  // As receiver.
  void said(const message::FromReceiver& body, Seconds now);
  void accepted(const RequestKey& key, Seconds now) { first_accepted_.try_emplace(key, now); }
  // `knows`: Receiver::knows. The grants of other keys are void.
  void joined(const action::JoinSequence& action, const std::function<bool(const RequestKey&)>& knows, Seconds now);

 private:
  Trace trace_;
  HandoverTotals totals_;
  std::unordered_map<RequestKey, Seconds> first_posted_, first_accepted_;
};

}  // namespace rtp_llm
