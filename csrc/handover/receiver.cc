#include "handover/receiver.h"

#include <algorithm>
#include <deque>
#include <set>
#include <utility>

#include "handover/contract.h"
#include "handover/deadlines.h"
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
  bool blocks_freed = false;    // waiting Reserves are to be tried again

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
  void reserve(const WorkerKey& sender, const message::Reserve& body, Seconds now, Actions& out);
  void reserve_new(const WorkerKey& sender, const message::Reserve& body, Seconds now, Actions& out);
  void say_over(const WorkerKey& sender, const Attempt& attempt, GrantId grant, Actions& out) const;
  bool try_grant(Attempt& attempt, Seconds now, Actions& out);
  void say_granted(const Attempt& attempt, const Grant& grant, Actions& out) const;
  void commit(const WorkerKey& sender, const message::Commit& body, Seconds now, Actions& out);
  void verify(Attempt& attempt, Seconds now, Actions& out);
  void run(Attempt& attempt, Seconds now, Actions& out);
  void bad_checksum(Attempt& attempt, Seconds now, Actions& out);
  void renew_leases(const WorkerKey& sender, const std::vector<GrantId>& listed, Seconds now);
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
    if (std::exchange(blocks_freed, false)) serve_queue(now, out);
  }
};

// --- QUEUED, GRANTED ---------------------------------------------------------------------------

void Receiver::State::reserve(const WorkerKey& sender, const message::Reserve& body, Seconds now, Actions& out) {
  const RequestKey& key = body.spec->key;
  if (const auto known = over.find(key); known != over.end()) {
    return say_over(sender, known->second, 0, out);
  }
  Attempt* attempt = find(key);
  if (!attempt) return reserve_new(sender, body, now, out);
  if (attempt->sender != sender) {
    out.push_back(action::ToSender{sender, message::PeerFenced{key}});
    return;
  }
  if (attempt->state == ReceiverState::kRunning) return to_sender(*attempt, message::PeerCommitted{key}, out);
  if (attempt->state != ReceiverState::kGranted) return;  // QUEUED: its answer comes; VERIFY: the bytes decide
  if (attempt->grant != body.given_up) return say_granted(*attempt, grants.at(attempt->grant), out);
  void_grant(attempt->grant, now);
  forget(key);
  reserve_new(sender, body, now, out);
}

void Receiver::State::reserve_new(const WorkerKey& sender, const message::Reserve& body, Seconds now, Actions& out) {
  const RequestKey key = body.spec->key;
  const auto answer = [&](message::FromReceiver message) {
    out.push_back(action::ToSender{sender, std::move(message)});
  };
  if (ledger.is_stale(key) || !routers.admits(key.router_epoch, now)) return answer(message::PeerFenced{key});
  if (routers.draining(key.router_epoch)) return answer(message::NoRoom{key, "draining"});
  serve_queue(now, out);  // nobody overtakes
  if (static_cast<int>(queue.size()) >= config.max_waiting_reserves) {
    return answer(message::NoRoom{key, std::to_string(queue.size()) + " wait already"});
  }
  Attempt& attempt = live[key];
  attempt.key = key;
  attempt.spec = body.spec;
  attempt.sender = sender;
  if (queue.empty() && try_grant(attempt, now, out)) return;
  queue.push_back(key);
  set_deadline(attempt, now + config.times.reserve_wait);
}

bool Receiver::State::try_grant(Attempt& attempt, Seconds now, Actions& out) {
  std::optional<GrantPool::Room> room = pool.grant(*attempt.spec);
  if (!room) return false;
  Grant& grant = grants[++last_grant];
  grant.id = last_grant;
  grant.key = attempt.key;
  grant.sender = *attempt.sender;
  grant.room = std::move(*room);
  grant.prefix_tokens = grant.room.prefix_blocks * config.block_tokens;
  grant.tokens = static_cast<int32_t>(attempt.spec->prompt.size() + attempt.spec->output.size());
  attempt.state = ReceiverState::kGranted;
  attempt.grant = grant.id;
  set_deadline(attempt, now + config.times.lease);
  say_granted(attempt, grant, out);
  return true;
}

void Receiver::State::say_granted(const Attempt& attempt, const Grant& grant, Actions& out) const {
  to_sender(attempt, message::Granted{grant.key, grant.id, grant.room.blocks, grant.prefix_tokens, config.times.lease},
            out);
}

void Receiver::State::say_over(const WorkerKey& sender, const Attempt& attempt, GrantId grant, Actions& out) const {
  message::FromReceiver body = message::PeerFenced{attempt.key};
  if (attempt.finished) body = message::PeerCommitted{attempt.key, grant};
  out.push_back(action::ToSender{sender, std::move(body)});
}

// First come, first served; the first that doesn't fit holds the rest up, for reserve_wait at most.
void Receiver::State::serve_queue(Seconds now, Actions& out) {
  while (!queue.empty()) {
    Attempt* attempt = find(queue.front());
    const bool waits = attempt && attempt->state == ReceiverState::kQueued;
    if (waits && !try_grant(*attempt, now, out)) return;
    queue.pop_front();
  }
}

void Receiver::State::renew_leases(const WorkerKey& sender, const std::vector<GrantId>& listed, Seconds now) {
  for (GrantId id : listed) {
    const auto grant = grants.find(id);
    if (grant == grants.end() || !grant->second.live || grant->second.sender != sender) continue;
    Attempt& attempt = live.at(grant->second.key);
    if (attempt.state == ReceiverState::kGranted) set_deadline(attempt, now + config.times.lease);
  }
}

// --- VERIFY, RUNNING ---------------------------------------------------------------------------

void Receiver::State::commit(const WorkerKey& sender, const message::Commit& body, Seconds now, Actions& out) {
  const auto answer = [&](message::FromReceiver message) {
    out.push_back(action::ToSender{sender, std::move(message)});
  };
  if (const auto known = over.find(body.key); known != over.end()) {
    return say_over(sender, known->second, body.grant, out);
  }
  Attempt* attempt = find(body.key);
  if (attempt && attempt->sender == sender) {
    if (attempt->state == ReceiverState::kRunning) return answer(message::PeerCommitted{body.key, body.grant});
    const bool current =
        attempt->grant == body.grant && static_cast<size_t>(body.first.position) == attempt->spec->output.size();
    if (attempt->state == ReceiverState::kVerify && current) return;  // again
    if (attempt->state == ReceiverState::kGranted && current) {
      attempt->state = ReceiverState::kVerify;
      attempt->commit = body;
      set_deadline(*attempt, now + config.times.verify_stall);
      return verify(*attempt, now, out);
    }
  }
  answer(message::Expired{body.key, body.grant});
}

void Receiver::State::verify(Attempt& attempt, Seconds now, Actions& out) {
  const Grant& grant = grants.at(attempt.grant);
  const message::Commit& commit = *attempt.commit;
  if (grant.bytes_accepted > commit.bytes) return bad_checksum(attempt, now, out);
  if (!grant.holds_exactly(commit.bytes)) return;
  if (grant.checksum != commit.checksum) return bad_checksum(attempt, now, out);
  run(attempt, now, out);
}

void Receiver::State::run(Attempt& attempt, Seconds, Actions& out) {
  const message::Commit commit = std::move(*attempt.commit);
  const Grant grant = std::move(grants.extract(attempt.grant).mapped());
  pool.join(grant.room);
  attempt.state = ReceiverState::kRunning;
  attempt.commit.reset();
  set_deadline(attempt, std::nullopt);
  attempt.remember(commit.first);
  auto spec = std::make_shared<SequenceSpec>(*attempt.spec);
  spec->output.push_back(commit.first.token);
  out.push_back(action::JoinSequence{std::move(spec), grant.room.blocks});
  to_sender(attempt, message::PeerCommitted{attempt.key, grant.id}, out);
  answer_again(attempt, out);
}

void Receiver::State::bad_checksum(Attempt& attempt, Seconds now, Actions& out) {
  const Grant& grant = grants.at(attempt.grant);
  to_sender(attempt, message::BadChecksum{attempt.key, grant.id, attempt.commit->checksum, grant.checksum}, out);
  void_grant(grant.id, now);
  forget(attempt.key);
}

// Committed, and the tokens from p0 on.
void Receiver::State::answer_again(const Attempt& attempt, Actions& out) const {
  to_router(attempt.key, message::Committed{attempt.key}, out);
  if (!attempt.outputs.empty()) to_router(attempt.key, message::Outputs{attempt.key, attempt.outputs}, out);
}

// --- the end -----------------------------------------------------------------------------------

void Receiver::State::end(const RequestKey& key, Seconds now, Actions& out) {
  if (over.contains(key)) return;
  Attempt& attempt = live[key];  // NONE: made, only to be remembered
  attempt.key = key;
  if (attempt.state == ReceiverState::kQueued) blocks_freed = true;  // it may have held others up
  if (attempt.state == ReceiverState::kRunning) {
    out.push_back(action::CancelSequence{key});
  } else if (attempt.sender) {
    to_sender(attempt, message::PeerFenced{key}, out);
  }
  if (attempt.state == ReceiverState::kGranted || attempt.state == ReceiverState::kVerify) {
    void_grant(attempt.grant, now);
  }
  bury(attempt, false, now);
}

void Receiver::State::forget(const RequestKey& key) {
  deadlines.set(key, std::nullopt);
  live.erase(key);
}

void Receiver::State::bury(Attempt& attempt, bool finished, Seconds now) {
  const RequestKey key = attempt.key;
  attempt.state = ReceiverState::kOver;
  attempt.finished = finished;
  if (!finished) attempt.outputs.clear();
  deadlines.set(key, std::nullopt);
  over.emplace(key, std::move(attempt));
  over_order.emplace_back(now, key);
  live.erase(key);
}

void Receiver::State::set_deadline(Attempt& attempt, std::optional<Seconds> deadline) {
  attempt.deadline = deadline;
  deadlines.set(attempt.key, deadline);
}

void Receiver::State::ran_out(Attempt& attempt, Seconds now, Actions& out) {
  switch (attempt.state) {
    case ReceiverState::kQueued:
      to_sender(attempt, message::NoRoom{attempt.key, "no blocks became free in time"}, out);
      blocks_freed = true;  // it may have held others up
      return forget(attempt.key);
    case ReceiverState::kGranted: void_grant(attempt.grant, now); return forget(attempt.key);
    case ReceiverState::kVerify: return bad_checksum(attempt, now, out);
    case ReceiverState::kRunning:
    case ReceiverState::kOver: return;
  }
}

// --- grants ------------------------------------------------------------------------------------

void Receiver::State::void_grant(GrantId id, Seconds now) {
  Grant& grant = grants.at(id);
  grant.live = false;
  pool.quarantine(grant.room);
  if (grant.receives_in_flight == 0) return free_quarantined(id);
  grant.close_at = now + config.times.quarantine;
  quarantines.set(id, grant.close_at);
}

void Receiver::State::free_quarantined(GrantId id) {
  pool.free_quarantined(grants.at(id).room);
  quarantines.set(id, std::nullopt);
  grants.erase(id);
  blocks_freed = true;
}

// A late write is still possible: the endpoint of the grant's sender ends, and with it everything
// that the sender has under way here.
void Receiver::State::close_endpoint(GrantId id, Seconds now, Actions& out) {
  const WorkerKey sender = grants.at(id).sender;
  if (!closing.insert(sender).second) {
    quarantines.set(id, now + config.times.quarantine);
    return;
  }
  out.push_back(action::CloseEndpoint{sender, Direction::kReceive});
  for (const RequestKey& key : keys_where([&](const Attempt& attempt) {
         return attempt.sender == sender &&
                (attempt.state == ReceiverState::kGranted || attempt.state == ReceiverState::kVerify);
       })) {
    const Attempt& attempt = live.at(key);
    to_sender(attempt, message::Expired{key, attempt.grant}, out);
    void_grant(attempt.grant, now);
    forget(key);
  }
}

// --- events ------------------------------------------------------------------------------------

Receiver::Receiver(WorkerKey self, const HandoverConfig& config, GrantPool& pool, AttemptLedger& ledger,
                   RouterSessions& routers)
    : state_(std::make_unique<State>(std::move(self), config, pool, ledger, routers)) {}

Receiver::~Receiver() = default;

void Receiver::expire(Seconds now, Actions& out) {
  while (const auto key = state_->deadlines.pop_due(now)) state_->ran_out(state_->live.at(*key), now, out);
  while (const auto id = state_->quarantines.pop_due(now)) state_->close_endpoint(*id, now, out);
  auto& order = state_->over_order;
  for (; !order.empty() && order.front().first + state_->config.times.memory <= now; order.pop_front()) {
    state_->over.erase(order.front().second);
  }
  state_->settle(now, out);
}

std::optional<Seconds> Receiver::next_deadline() const {
  std::optional<Seconds> next = earlier(state_->deadlines.next(), state_->quarantines.next());
  if (!state_->over_order.empty()) {
    next = earlier(next, state_->over_order.front().first + state_->config.times.memory);
  }
  return next;
}

std::variant<Destination, Refusal> Receiver::accept(const WorkerKey& sender, const KvMessageHeader& header,
                                                    uint64_t payload_bytes, Seconds now) {
  if (header.version != KvMessageHeader{}.version) return Refusal::kVersion;
  if (header.receiver_epoch != state_->self.epoch) return Refusal::kEpoch;
  const auto found = state_->grants.find(header.grant);
  if (found == state_->grants.end() || !found->second.live) return Refusal::kNoSuchGrant;
  ReceiverGrant& grant = found->second;
  if (grant.sender != sender) return Refusal::kSender;
  if (const auto refusal = grant.check(header, payload_bytes, state_->config)) return *refusal;
  ++grant.receives_in_flight;
  grant.bytes_accepted += payload_bytes;
  State::Attempt& attempt = state_->live.at(grant.key);
  if (attempt.state == ReceiverState::kVerify) {
    state_->set_deadline(attempt, now + state_->config.times.verify_stall);
  }
  const auto first_token = static_cast<int32_t>(header.first_token);
  const auto tokens = static_cast<int32_t>(header.tokens);
  const auto begin = grant.room.blocks.begin() + first_token / state_->config.block_tokens;
  const auto last = grant.room.blocks.begin() + (first_token + tokens - 1) / state_->config.block_tokens;
  return Destination{grant.id,    grant.key, header.first_layer, header.num_layers,
                     first_token, tokens,    {begin, last + 1}};
}

void Receiver::on(const event::FromSender& event, Seconds now, Actions& out) {
  if (const auto* reserve = std::get_if<message::Reserve>(&event.body)) {
    state_->reserve(event.sender, *reserve, now, out);
  } else if (const auto* commit = std::get_if<message::Commit>(&event.body)) {
    state_->commit(event.sender, *commit, now, out);
  } else if (const auto* abort = std::get_if<message::Abort>(&event.body)) {
    const State::Attempt* attempt = state_->find(abort->key);
    const bool judged = attempt && attempt->state == ReceiverState::kRunning;
    if (attempt && attempt->sender == event.sender && !judged) state_->end(abort->key, now, out);
  } else if (const auto* heartbeat = std::get_if<message::SenderHeartbeat>(&event.body)) {
    state_->renew_leases(event.sender, heartbeat->grants, now);
  }
  state_->settle(now, out);
}

void Receiver::on(const event::SenderLost& event, Seconds now, Actions& out) {
  for (const RequestKey& key : state_->keys_where([&](const State::Attempt& attempt) {
         return attempt.sender == event.sender &&
                (attempt.state == ReceiverState::kQueued || attempt.state == ReceiverState::kGranted);
       })) {
    const State::Attempt& attempt = state_->live.at(key);
    if (attempt.state == ReceiverState::kGranted) state_->void_grant(attempt.grant, now);
    state_->forget(key);
  }
  state_->blocks_freed = true;
  state_->settle(now, out);
}

void Receiver::attach(const message::AttachEntry& entry, Actions& out) const {
  const State::Attempt* attempt = state_->find(entry.key);
  if (!attempt) attempt = &state_->over.at(entry.key);
  if (attempt->state == ReceiverState::kRunning || attempt->finished) {
    message::Outputs outputs{entry.key, {}};
    for (const SampledToken& token : attempt->outputs) {
      if (token.position >= entry.next_position) outputs.tokens.push_back(token);
    }
    state_->to_router(entry.key, message::Committed{entry.key}, out);
    if (!outputs.tokens.empty()) state_->to_router(entry.key, std::move(outputs), out);
  } else if (attempt->state == ReceiverState::kOver) {
    state_->to_router(entry.key, message::Fenced{entry.key}, out);
  }
}

void Receiver::on(const event::Output& event) {
  if (State::Attempt* attempt = state_->find(event.key)) {
    if (attempt->state == ReceiverState::kRunning) attempt->remember(event.token);
  } else if (const auto known = state_->over.find(event.key); known != state_->over.end() && known->second.finished) {
    known->second.remember(event.token);  // came after its Finished
  }
}

void Receiver::on(const event::Finished& event, Seconds now, Actions& out) {
  State::Attempt* attempt = state_->find(event.key);
  if (!attempt || attempt->state != ReceiverState::kRunning) return;
  const bool cancelled = event.finish == FinishReason::kCancelled;  // by the engine: nobody asked for it
  if (cancelled) state_->to_router(event.key, message::Fenced{event.key}, out);
  state_->bury(*attempt, !cancelled, now);
}

void Receiver::on(const event::Rejected& event, Seconds now, Actions& out) {
  State::Attempt* attempt = state_->find(event.failed.key);
  if (!attempt || attempt->state != ReceiverState::kRunning) return;
  state_->to_router(event.failed.key, event.failed, out);
  state_->bury(*attempt, false, now);
}

void Receiver::on(const event::RoomChanged&, Seconds now, Actions& out) { state_->serve_queue(now, out); }

void Receiver::on(const event::ReceiveDone& event, Seconds now, Actions& out) {
  const auto found = state_->grants.find(event.grant);
  require(found != state_->grants.end() && found->second.receives_in_flight > 0, "ReceiveDone for grant ", event.grant,
          " which has none in flight");
  ReceiverGrant& grant = found->second;
  --grant.receives_in_flight;
  if (event.ok) {
    grant.bytes_received += event.bytes;
    grant.checksum += event.checksum;
  }
  if (grant.live) {
    State::Attempt& attempt = state_->live.at(grant.key);
    if (attempt.state == ReceiverState::kVerify) {
      if (event.ok) state_->set_deadline(attempt, now + state_->config.times.verify_stall);
      state_->verify(attempt, now, out);
    }
  } else if (grant.receives_in_flight == 0) {
    state_->free_quarantined(event.grant);
  }
  state_->settle(now, out);
}

void Receiver::on(const event::EndpointClosed& event) { state_->closing.erase(event.peer); }

void Receiver::cancel(const RequestKey& key, Seconds now, Actions& out) {
  state_->end(key, now, out);
  state_->settle(now, out);
}

void Receiver::fence(const RequestKey& key, Seconds now, Actions& out) {
  const State::Attempt* attempt = state_->find(key);
  if (attempt && attempt->state == ReceiverState::kRunning) {
    state_->to_router(key, message::Committed{key}, out);
    return;
  }
  state_->end(key, now, out);
  if (state_->over.at(key).finished) {
    state_->to_router(key, message::Committed{key}, out);
  } else {
    state_->to_router(key, message::Fenced{key}, out);
  }
  state_->settle(now, out);
}

void Receiver::higher_attempt(const RequestKey& key, Seconds now, Actions& out) {
  for (const RequestKey& lower : state_->keys_where([&](const State::Attempt& attempt) {
         return attempt.key.without_attempt() == key.without_attempt() && attempt.key.attempt < key.attempt;
       })) {
    state_->end(lower, now, out);
  }
  state_->settle(now, out);
}

void Receiver::router_expired(uint64_t router_epoch, Seconds now, Actions& out) {
  for (const RequestKey& key :
       state_->keys_where([&](const State::Attempt& attempt) { return attempt.key.router_epoch == router_epoch; })) {
    state_->end(key, now, out);
  }
  state_->settle(now, out);
}

bool Receiver::knows(const RequestKey& key) const { return state_->live.contains(key) || state_->over.contains(key); }

std::optional<ReceiverState> Receiver::state(const RequestKey& key) const {
  if (const State::Attempt* attempt = state_->find(key)) return attempt->state;
  if (state_->over.contains(key)) return ReceiverState::kOver;
  return std::nullopt;
}

ReceiverCounts Receiver::counts() const {
  ReceiverCounts counts;
  for (const auto& [key, attempt] : state_->live) {
    switch (attempt.state) {
      case ReceiverState::kQueued: ++counts.queued; break;
      case ReceiverState::kGranted: ++counts.granted; break;
      case ReceiverState::kVerify: ++counts.verifying; break;
      case ReceiverState::kRunning: ++counts.running; break;
      case ReceiverState::kOver: break;
    }
  }
  for (const auto& [id, grant] : state_->grants) {
    ++(grant.live ? counts.live_grants : counts.quarantined_grants);
    (grant.live ? counts.granted_blocks : counts.quarantined_blocks) += grant.fresh_blocks();
    counts.receives_in_flight += grant.receives_in_flight;
  }
  counts.remembered = static_cast<int64_t>(state_->over.size());
  return counts;
}

}  // namespace rtp_llm
