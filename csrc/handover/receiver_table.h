// ReceiverTable: all of a Receiver's keys and grants, and the steps of their tables. Private to the
// receiver.
#pragma once

#include <deque>
#include <unordered_map>
#include <utility>
#include <vector>

#include "handover/attempt_table.h"
#include "handover/receiver.h"
#include "handover/receiver_attempt.h"

namespace rtp_llm {

struct ReceiverTable : AttemptTable<ReceiverAttempt> {
  ReceiverTable(WorkerKey self, const HandoverConfig& config, GrantPool& pool, AttemptLedger& ledger,
                RouterSessions& routers)
      : self(std::move(self)), config(config), pool(pool), ledger(ledger), routers(routers) {}

  WorkerKey self;
  HandoverConfig config;
  GrantPool& pool;
  AttemptLedger& ledger;
  RouterSessions& routers;
  GrantId last_grant = 0;
  std::deque<RequestKey> queue;  // QUEUED, in order of arrival; may hold keys that left it
  std::unordered_map<GrantId, ReceiverGrant> grants;
  Deadlines<GrantId> quarantines;
  bool room_changed = false;  // waiting Reserves are to be tried again

  // --- speaking
  void to_sender(const ReceiverAttempt& attempt, message::FromReceiver body, Actions& out) const {
    out.push_back(action::ToSender{*attempt.sender, std::move(body)});
  }
  void to_router(const RequestKey& key, message::ToRouter body, Actions& out) const {
    out.push_back(action::ToRouter{key.router_epoch, std::move(body)});
  }

  // --- steps of the table
  void reserve(const event::FromSender& event, const message::Reserve& body, Seconds now, Actions& out);
  void reserve_new(const event::FromSender& event, const message::Reserve& body, Seconds now, Actions& out);
  void say_over(const WorkerKey& sender, const ReceiverAttempt& attempt, GrantId grant, Actions& out) const;
  bool try_grant(ReceiverAttempt& attempt, Seconds now, Actions& out);
  void say_granted(const ReceiverAttempt& attempt, const ReceiverGrant& grant, Actions& out) const;
  void commit(const WorkerKey& sender, const message::Commit& body, Seconds now, Actions& out);
  bool may_join(const ReceiverAttempt& attempt, const SampledToken& first) const;
  void verify(ReceiverAttempt& attempt, Seconds now, Actions& out);
  void run(ReceiverAttempt& attempt, Seconds now, Actions& out);
  void bad_checksum(ReceiverAttempt& attempt, Seconds now, Actions& out);
  void renew_leases(const WorkerKey& sender, const std::vector<GrantId>& listed, Seconds now);
  void abort(const WorkerKey& sender, const message::Abort& body, Seconds now, Actions& out);
  void end(const RequestKey& key, Seconds now, Actions& out);  // cancel, fence, higher attempt, router expired
  void answer_again(const ReceiverAttempt& attempt, Actions& out) const;
  void forget(const RequestKey& key);                                   // -> NONE
  void remember(ReceiverAttempt& attempt, bool finished, Seconds now);  // -> OVER
  void set_deadline(ReceiverAttempt& attempt, std::optional<Seconds> deadline);
  void serve_queue(Seconds now, Actions& out);
  void ran_out(ReceiverAttempt& attempt, Seconds now, Actions& out);

  // --- the grant's table
  void void_grant(GrantId id, Seconds now);
  void free_quarantined(GrantId id);
  void close_endpoint(GrantId id, Seconds now, Actions& out);

  // Each handler ends here.
  void settle(Seconds now, Actions& out) {
    if (std::exchange(room_changed, false)) serve_queue(now, out);
  }
};

}  // namespace rtp_llm
