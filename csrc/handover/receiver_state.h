// Receiver::State: all of a Receiver's keys and grants, and the steps of their tables. Private to the
// receiver.
#pragma once

#include <algorithm>
#include <deque>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "handover/deadlines.h"
#include "handover/receiver.h"
#include "handover/receiver_attempt.h"

namespace rtp_llm {

struct Receiver::State {
  using Attempt = ReceiverAttempt;
  using Grant = ReceiverGrant;

  State(WorkerKey self, const HandoverConfig& config, GrantPool& pool, AttemptLedger& ledger, RouterSessions& routers)
      : self(std::move(self)), config(config), pool(pool), ledger(ledger), routers(routers) {}

  WorkerKey self;
  HandoverConfig config;
  GrantPool& pool;
  AttemptLedger& ledger;
  RouterSessions& routers;
  GrantId last_grant = 0;
  std::unordered_map<RequestKey, Attempt> live;
  std::unordered_map<RequestKey, Attempt> over;
  std::deque<std::pair<Seconds, RequestKey>> over_order;
  std::deque<RequestKey> queue;  // QUEUED, in order of arrival; may hold keys that left it
  std::unordered_map<GrantId, Grant> grants;
  Deadlines<RequestKey> deadlines;
  Deadlines<GrantId> quarantines;
  std::set<WorkerKey> closing;  // endpoints, until EndpointClosed
  bool room_changed = false;    // waiting Reserves are to be tried again

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
  void to_sender(const Attempt& attempt, message::FromReceiver body, Actions& out) const {
    out.push_back(action::ToSender{*attempt.sender, std::move(body)});
  }
  void to_router(const RequestKey& key, message::ToRouter body, Actions& out) const {
    out.push_back(action::ToRouter{key.router_epoch, std::move(body)});
  }

  // --- steps of the table
  void reserve(const event::FromSender& event, const message::Reserve& body, Seconds now, Actions& out);
  void reserve_new(const event::FromSender& event, const message::Reserve& body, Seconds now, Actions& out);
  void say_over(const WorkerKey& sender, const Attempt& attempt, GrantId grant, Actions& out) const;
  bool try_grant(Attempt& attempt, Seconds now, Actions& out);
  void say_granted(const Attempt& attempt, const Grant& grant, Actions& out) const;
  void commit(const WorkerKey& sender, const message::Commit& body, Seconds now, Actions& out);
  bool may_join(const Attempt& attempt, const SampledToken& first) const;
  void verify(Attempt& attempt, Seconds now, Actions& out);
  void run(Attempt& attempt, Seconds now, Actions& out);
  void bad_checksum(Attempt& attempt, Seconds now, Actions& out);
  void renew_leases(const WorkerKey& sender, const std::vector<GrantId>& listed, Seconds now);
  void abort(const WorkerKey& sender, const message::Abort& body, Seconds now, Actions& out);
  void end(const RequestKey& key, Seconds now, Actions& out);  // cancel, fence, higher attempt, router expired
  void answer_again(const Attempt& attempt, Actions& out) const;
  void forget(const RequestKey& key);                       // -> NONE
  void bury(Attempt& attempt, bool finished, Seconds now);  // -> OVER
  void set_deadline(Attempt& attempt, std::optional<Seconds> deadline);
  void serve_queue(Seconds now, Actions& out);
  void ran_out(Attempt& attempt, Seconds now, Actions& out);

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
