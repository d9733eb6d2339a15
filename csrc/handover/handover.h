// Handover: both halves of one worker behind one door. The transfer thread owns it, posts every
// event here and does what comes out; nobody else calls Sender or Receiver.
//
// Before each event it judges what has run out by `now`, so a process that was stopped judges its
// own past first. A Submit, Reserve, Cancel or Fence ends lower attempts here, in either role.
#pragma once

#include <optional>
#include <variant>

#include "handover/actions.h"
#include "handover/attempt_ledger.h"
#include "handover/events.h"
#include "handover/grant_pool.h"
#include "handover/receiver.h"
#include "handover/router_sessions.h"
#include "handover/sender.h"

namespace rtp_llm {

struct HandoverCounts {
  SenderCounts sender;
  ReceiverCounts receiver;
};

class Handover {
 public:
  // REQUIRES: pool outlives this.
  Handover(WorkerKey self, const HandoverConfig& config, GrantPool& pool);

  // Appends what is to be done to `out`. `now` never goes back.
  void handle(const Event& event, Seconds now, Actions& out);
  // The data path: see Receiver::accept. What ran out by now is appended to `out` first.
  std::variant<Destination, Refusal> accept(const WorkerKey& sender, const KvMessageHeader& header,
                                            uint64_t payload_bytes, Seconds now, Actions& out);
  // When a Tick is due; nullopt: nothing can run out.
  std::optional<Seconds> next_deadline() const;

  HandoverCounts counts() const { return {sender_.counts(), receiver_.counts()}; }
  bool idle() const;  // all counts but the remembered are zero
  const Sender& sender() const { return sender_; }
  const Receiver& receiver() const { return receiver_; }

 private:
  void expire(Seconds now, Actions& out);
  void raise(const RequestKey& key, Seconds now, Actions& out);
  void from_sender(const event::FromSender& event, Seconds now, Actions& out);
  void from_router(const event::FromRouter& event, Seconds now, Actions& out);
  void attach_one(uint64_t router_epoch, const message::AttachEntry& entry, Actions& out) const;

  RouterSessions routers_;
  AttemptLedger ledger_;
  Sender sender_;
  Receiver receiver_;
};

}  // namespace rtp_llm
