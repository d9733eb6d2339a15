// SenderTable: all of a Sender's keys, and the steps of its table. Private to the sender.
#pragma once

#include <string>
#include <utility>

#include "handover/attempt_table.h"
#include "handover/sender.h"
#include "handover/sender_attempt.h"

namespace rtp_llm {

struct SenderTable : AttemptTable<SenderAttempt> {
  SenderTable(WorkerKey self, const HandoverConfig& config, AttemptLedger& ledger, RouterSessions& routers)
      : self(std::move(self)), config(config), ledger(ledger), routers(routers) {}

  WorkerKey self;
  HandoverConfig config;
  AttemptLedger& ledger;
  RouterSessions& routers;

  // --- speaking
  void say(const SenderAttempt& attempt, message::ToRouter body, Actions& out) const {
    out.push_back(action::ToRouter{attempt.key.router_epoch, std::move(body)});
  }
  void notify(SenderAttempt& attempt, message::ToRouter body, Actions& out) const {
    attempt.notice = body;
    say(attempt, std::move(body), out);
  }
  void to_receiver(const SenderAttempt& attempt, message::FromSender body, Actions& out) const {
    out.push_back(action::ToReceiver{*attempt.receiver, std::move(body)});
  }

  // --- steps of the table
  void submit(const event::FromRouter& event, const message::Submit& body, Actions& out, Seconds now);
  void reserve(SenderAttempt& attempt, Seconds now, Actions& out);
  void say_first(SenderAttempt& attempt, Actions& out);
  void granted(SenderAttempt& attempt, const message::Granted& body, Seconds now, Actions& out);
  void go_on_pushing(SenderAttempt& attempt, Seconds now, Actions& out);
  void commit(SenderAttempt& attempt, Seconds now, Actions& out);
  void await(SenderAttempt& attempt, Seconds now, Actions& out);
  void leave_await(SenderAttempt& attempt, Seconds now, Actions& out);
  void go_without(SenderAttempt& attempt, std::string reason, Seconds now, Actions& out);
  void no_room(SenderAttempt& attempt, const std::string& reason, Seconds now, Actions& out);
  void released(SenderAttempt& attempt, Seconds now, Actions& out);
  void end(SenderAttempt& attempt, Seconds now, Actions& out);  // cancel, higher attempt, router expired
  void abort(SenderAttempt& attempt, Actions& out);
  void flush(SenderAttempt& attempt, Seconds now, Actions& out);
  void remember(SenderAttempt& attempt, Seconds now);  // -> GONE
  bool close_endpoint(const WorkerKey& peer, Seconds now, Actions& out);
  void endpoint_broken(const WorkerKey& peer, Seconds now, Actions& out);
  void ran_out(SenderAttempt& attempt, Seconds now, Actions& out);
  void replay(const SenderAttempt& attempt, int32_t next_position, Actions& out) const;
  void from_receiver(SenderAttempt& attempt, const message::FromReceiver& body, Seconds now, Actions& out);

  // Each handler ends here.
  void settle(const RequestKey& key) {
    const SenderAttempt* attempt = find(key);
    deadlines.set(key, attempt ? attempt->deadline(config.times) : std::nullopt);
  }
};

}  // namespace rtp_llm
