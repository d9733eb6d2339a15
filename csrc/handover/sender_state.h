// Sender::State: all of a Sender's keys, and the steps of its table. Private to the sender.
#pragma once

#include <algorithm>
#include <deque>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "handover/deadlines.h"
#include "handover/sender.h"
#include "handover/sender_attempt.h"

namespace rtp_llm {

struct Sender::State {
  using Attempt = SenderAttempt;

  State(WorkerKey self, const HandoverConfig& config, AttemptLedger& ledger, RouterSessions& routers)
      : self(std::move(self)), config(config), ledger(ledger), routers(routers) {}

  WorkerKey self;
  HandoverConfig config;
  AttemptLedger& ledger;
  RouterSessions& routers;
  std::unordered_map<RequestKey, Attempt> live;
  std::unordered_map<RequestKey, Attempt> gone;
  std::deque<std::pair<Seconds, RequestKey>> gone_order;
  Deadlines<RequestKey> deadlines;
  std::set<WorkerKey> closing;  // endpoints, until EndpointClosed

  // --- looking up
  Attempt* find(const RequestKey& key) {
    const auto found = live.find(key);
    return found == live.end() ? nullptr : &found->second;
  }
  // Keys first, as handling one may end it. Sorted: the order of actions never hangs on a hash.
  template <typename Condition>
  std::vector<RequestKey> keys_where(Condition condition) const {
    std::vector<RequestKey> keys;
    for (const auto& [key, attempt] : live) {
      if (condition(attempt)) keys.push_back(key);
    }
    std::sort(keys.begin(), keys.end());
    return keys;
  }

  // --- speaking
  void say(const Attempt& attempt, message::ToRouter body, Actions& out) const {
    out.push_back(action::ToRouter{attempt.key.router_epoch, std::move(body)});
  }
  void notify(Attempt& attempt, message::ToRouter body, Actions& out) const {
    attempt.notice = body;
    say(attempt, std::move(body), out);
  }
  void to_receiver(const Attempt& attempt, message::FromSender body, Actions& out) const {
    out.push_back(action::ToReceiver{*attempt.receiver, std::move(body)});
  }

  // --- steps of the table
  void submit(const event::FromRouter& event, const message::Submit& body, Actions& out, Seconds now);
  void reserve(Attempt& attempt, Seconds now, Actions& out);
  void say_first(Attempt& attempt, Actions& out);
  void granted(Attempt& attempt, const message::Granted& body, Seconds now, Actions& out);
  void go_on_pushing(Attempt& attempt, Seconds now, Actions& out);
  void commit(Attempt& attempt, Seconds now, Actions& out);
  void await(Attempt& attempt, Seconds now, Actions& out);
  void leave_await(Attempt& attempt, Seconds now, Actions& out);
  void go_without(Attempt& attempt, std::string reason, Seconds now, Actions& out);
  void no_room(Attempt& attempt, const std::string& reason, Seconds now, Actions& out);
  void released(Attempt& attempt, Seconds now, Actions& out);
  void end(Attempt& attempt, Seconds now, Actions& out);  // cancel, higher attempt, router expired
  void abort(Attempt& attempt, Actions& out);
  void flush(Attempt& attempt, Seconds now, Actions& out);
  void bury(Attempt& attempt, Seconds now);
  bool close_endpoint(const WorkerKey& peer, Seconds now, Actions& out);
  void endpoint_broken(const WorkerKey& peer, Seconds now, Actions& out);
  void ran_out(Attempt& attempt, Seconds now, Actions& out);
  void replay(const Attempt& attempt, int32_t next_position, Actions& out) const;
  void from_receiver(Attempt& attempt, const message::FromReceiver& body, Seconds now, Actions& out);

  // Each handler ends here, unless it buried the attempt.
  void settle(const RequestKey& key) {
    const Attempt* attempt = find(key);
    deadlines.set(key, attempt ? attempt->deadline(config.times) : std::nullopt);
  }
};

}  // namespace rtp_llm
