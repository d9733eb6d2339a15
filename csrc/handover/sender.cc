#include "handover/sender.h"

#include <algorithm>
#include <deque>
#include <set>
#include <utility>

#include "handover/contract.h"
#include "handover/deadlines.h"
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
    out.push_back(action::ToRouter{attempt.key().router_epoch, std::move(body)});
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
  void granted(Attempt& attempt, const message::Granted& body, Seconds now, Actions& out);
  void go_on_pushing(Attempt& attempt, Seconds now, Actions& out);
  void commit(Attempt& attempt, Seconds now, Actions& out);
  void await(Attempt& attempt, Seconds now, Actions& out);
  void leave_await(Attempt& attempt, Seconds now, Actions& out);
  void go_without(Attempt& attempt, std::string reason, Seconds now, Actions& out);
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

namespace {

bool must_end_with_first_token(const SequenceSpec& spec) {
  return static_cast<int64_t>(spec.output.size()) + 1 >= spec.max_tokens;
}

bool has_grant(const SenderAttempt& attempt) {
  return attempt.state == SenderState::kPush || attempt.state == SenderState::kCommit;
}

// The key that a receiver's message is about.
const RequestKey& key_of(const message::FromReceiver& body) {
  return std::visit([](const auto& message) -> const RequestKey& { return message.key; }, body);
}

}  // namespace

// --- QUEUED, COMPUTE ---------------------------------------------------------------------------

void Sender::State::submit(const event::FromRouter& event, const message::Submit& body, Actions& out, Seconds now) {
  const RequestKey key = body.spec->key;
  if (live.contains(key) || gone.contains(key)) return;  // doubled
  const auto answer = [&](message::ToRouter notice) {
    out.push_back(action::ToRouter{event.router_epoch, std::move(notice)});
  };
  if (ledger.is_stale(key)) return answer(message::Fenced{key});
  if (event.invalid) {
    Attempt& attempt = live[key];
    attempt.spec = body.spec;
    notify(attempt, *event.invalid, out);
    return bury(attempt, now);
  }
  if (event.queued_tokens >= event.max_queued_tokens || routers.draining(key.router_epoch)) {
    return answer(message::Busy{key, event.queued_tokens, event.max_queued_tokens});
  }
  Attempt& attempt = live[key];
  attempt.spec = body.spec;
  if (!body.receiver || must_end_with_first_token(*body.spec)) {
    attempt.state = SenderState::kLocal;
    out.push_back(action::EnqueueSequence{body.spec, Role::kAlone});
    return;
  }
  attempt.receiver = body.receiver;
  out.push_back(action::Meet{*body.receiver, body.receiver_address});
  out.push_back(action::EnqueueSequence{body.spec, Role::kSender});
}

void Sender::State::reserve(Attempt& attempt, Seconds now, Actions& out) {
  attempt.state = SenderState::kCompute;
  attempt.reserved = true;
  attempt.repeat_at = now + config.times.repeat;
  to_receiver(attempt, message::Reserve{attempt.spec, attempt.given_up}, out);
}

void Sender::State::granted(Attempt& attempt, const message::Granted& body, Seconds now, Actions& out) {
  const bool waits = attempt.state == SenderState::kCompute && !attempt.without_receiver;
  if (waits) {
    if (body.grant <= attempt.given_up) return;  // an answer to an earlier Reserve
    attempt.begin(body, now);
    attempt.state = SenderState::kPush;
    attempt.repeat_at.reset();
    go_on_pushing(attempt, now, out);
  } else if (has_grant(attempt)) {
    if (body.grant > attempt.grant->id) await(attempt, now, out);  // so ours is void there
  } else if (attempt.state != SenderState::kAwait) {
    abort(attempt, out);  // nobody will use it
  }
}

void Sender::State::go_on_pushing(Attempt& attempt, Seconds now, Actions& out) {
  attempt.push(config, now, out);
  if (attempt.is_sent()) commit(attempt, now, out);
}

void Sender::State::commit(Attempt& attempt, Seconds now, Actions& out) {
  attempt.state = SenderState::kCommit;
  attempt.repeat_at = now + config.times.repeat;
  const SenderGrant& grant = *attempt.grant;
  to_receiver(attempt,
              message::Commit{attempt.key(), grant.id, *attempt.first, grant.bytes, grant.messages, grant.checksum},
              out);
}

// --- a grant went wrong ------------------------------------------------------------------------

void Sender::State::await(Attempt& attempt, Seconds now, Actions& out) {
  attempt.given_up = attempt.grant->id;
  attempt.grant.reset();
  ++attempt.grants_failed;
  attempt.state = SenderState::kAwait;
  attempt.repeat_at.reset();
  attempt.close_at = now + config.times.flush;
  leave_await(attempt, now, out);
}

void Sender::State::leave_await(Attempt& attempt, Seconds now, Actions& out) {
  if (attempt.pushes_in_flight > 0) return;
  attempt.close_at.reset();
  if (attempt.grants_failed < config.max_reserves) return reserve(attempt, now, out);
  abort(attempt, out);
  go_without(attempt, std::to_string(attempt.grants_failed) + " grants failed", now, out);
}

void Sender::State::go_without(Attempt& attempt, std::string reason, Seconds now, Actions& out) {
  attempt.without_receiver = std::move(reason);
  attempt.grant.reset();
  attempt.repeat_at.reset();
  attempt.close_at.reset();
  if (attempt.state != SenderState::kQueued) attempt.state = SenderState::kCompute;
  if (attempt.first) released(attempt, now, out);
}

void Sender::State::released(Attempt& attempt, Seconds now, Actions& out) {
  notify(attempt, message::Released{attempt.key(), *attempt.without_receiver}, out);
  flush(attempt, now, out);
}

bool Sender::State::close_endpoint(const WorkerKey& peer, Seconds now, Actions& out) {
  if (!closing.insert(peer).second) return false;
  out.push_back(action::CloseEndpoint{peer, Direction::kSend});
  endpoint_broken(peer, now, out);
  return true;
}

// What was sent on it may never arrive, though its sends completed here.
void Sender::State::endpoint_broken(const WorkerKey& peer, Seconds now, Actions& out) {
  for (const RequestKey& key : keys_where([&](const Attempt& attempt) {
         return has_grant(attempt) && *attempt.receiver == peer && attempt.grant->messages > 0;
       })) {
    await(live.at(key), now, out);
    settle(key);
  }
}

// --- the end -----------------------------------------------------------------------------------

void Sender::State::end(Attempt& attempt, Seconds now, Actions& out) {
  if (attempt.state == SenderState::kFlush) return;
  attempt.notice = message::Fenced{attempt.key()};
  if (!attempt.first) out.push_back(action::CancelSequence{attempt.key()});
  if (attempt.is_local()) return bury(attempt, now);
  abort(attempt, out);
  flush(attempt, now, out);
}

void Sender::State::abort(Attempt& attempt, Actions& out) {
  if (attempt.reserved) to_receiver(attempt, message::Abort{attempt.key()}, out);
}

void Sender::State::flush(Attempt& attempt, Seconds now, Actions& out) {
  attempt.state = SenderState::kFlush;
  attempt.grant.reset();
  attempt.repeat_at.reset();
  attempt.close_at.reset();
  if (attempt.pushes_in_flight > 0) {
    attempt.close_at = now + config.times.flush;
    return;
  }
  out.push_back(action::ReleaseBlocks{attempt.key()});
  bury(attempt, now);
}

void Sender::State::bury(Attempt& attempt, Seconds now) {
  attempt.state = SenderState::kGone;
  const RequestKey key = attempt.key();
  gone.emplace(key, std::move(attempt));
  gone_order.emplace_back(now, key);
  live.erase(key);
}

// --- time --------------------------------------------------------------------------------------

void Sender::State::ran_out(Attempt& attempt, Seconds now, Actions& out) {
  if (attempt.state == SenderState::kPush && attempt.is_stalled(config.times, now)) {
    return await(attempt, now, out);
  }
  if (attempt.repeat_at && *attempt.repeat_at <= now) {
    if (attempt.state == SenderState::kCommit) return commit(attempt, now, out);
    return reserve(attempt, now, out);
  }
  if (attempt.close_at && *attempt.close_at <= now) {
    attempt.close_at.reset();  // what is in flight ends with the endpoint
    if (!close_endpoint(*attempt.receiver, now, out)) attempt.close_at = now + config.times.flush;
  }
}

void Sender::State::replay(const Attempt& attempt, int32_t next_position, Actions& out) const {
  message::Outputs outputs{attempt.key(), {}};
  for (const SampledToken& token : attempt.outputs) {
    if (token.position >= next_position) outputs.tokens.push_back(token);
  }
  if (!outputs.tokens.empty()) say(attempt, std::move(outputs), out);
  if (attempt.notice) say(attempt, *attempt.notice, out);
}

void Sender::State::from_receiver(Attempt& attempt, const message::FromReceiver& body, Seconds now, Actions& out) {
  const SenderState state = attempt.state;
  const bool involved = state != SenderState::kQueued && state != SenderState::kFlush && !attempt.without_receiver;
  const auto is_current = [&](GrantId grant) { return has_grant(attempt) && attempt.grant->id == grant; };
  if (const auto* grant = std::get_if<message::Granted>(&body)) {
    granted(attempt, *grant, now, out);
  } else if (!involved) {
    return;
  } else if (std::holds_alternative<message::PeerCommitted>(body)) {
    if (attempt.first) flush(attempt, now, out);
  } else if (const auto* no_room = std::get_if<message::NoRoom>(&body)) {
    if (state == SenderState::kCompute) go_without(attempt, "no room: " + no_room->reason, now, out);
  } else if (std::holds_alternative<message::PeerFenced>(body)) {
    go_without(attempt, "fenced by " + attempt.receiver->str(), now, out);
  } else if (const auto* expired = std::get_if<message::Expired>(&body)) {
    if (is_current(expired->grant)) await(attempt, now, out);
  } else if (const auto* bad = std::get_if<message::BadChecksum>(&body)) {
    if (is_current(bad->grant)) await(attempt, now, out);
  }
}

// --- events ------------------------------------------------------------------------------------

Sender::Sender(WorkerKey self, const HandoverConfig& config, AttemptLedger& ledger, RouterSessions& routers)
    : state_(std::make_unique<State>(std::move(self), config, ledger, routers)) {
  require(config.max_push_tokens % config.block_tokens == 0, "max_push_tokens ", config.max_push_tokens,
          " is not a multiple of block_tokens ", config.block_tokens);
}

Sender::~Sender() = default;

void Sender::expire(Seconds now, Actions& out) {
  while (const auto key = state_->deadlines.pop_due(now)) {
    if (State::Attempt* attempt = state_->find(*key)) state_->ran_out(*attempt, now, out);
    state_->settle(*key);
  }
  auto& order = state_->gone_order;
  for (; !order.empty() && order.front().first + state_->config.times.memory <= now; order.pop_front()) {
    state_->gone.erase(order.front().second);
  }
}

std::optional<Seconds> Sender::next_deadline() const {
  std::optional<Seconds> next = state_->deadlines.next();
  if (!state_->gone_order.empty()) {
    next = earlier(next, state_->gone_order.front().first + state_->config.times.memory);
  }
  return next;
}

void Sender::on(const event::FromRouter& event, const message::Submit& body, Seconds now, Actions& out) {
  state_->submit(event, body, out, now);
  state_->settle(body.spec->key);
}

void Sender::attach(const message::AttachEntry& entry, Actions& out) const {
  if (const State::Attempt* attempt = state_->find(entry.key)) {
    state_->replay(*attempt, entry.next_position, out);
  } else if (const auto gone = state_->gone.find(entry.key); gone != state_->gone.end()) {
    state_->replay(gone->second, entry.next_position, out);
  }
}

void Sender::on(const event::FromReceiver& event, Seconds now, Actions& out) {
  const RequestKey key = key_of(event.body);
  State::Attempt* attempt = state_->find(key);
  if (attempt && attempt->receiver == event.receiver) {
    state_->from_receiver(*attempt, event.body, now, out);
    state_->settle(key);
  } else if (std::holds_alternative<message::Granted>(event.body)) {
    out.push_back(action::ToReceiver{event.receiver, message::Abort{key}});  // nobody will use it
  }
}

void Sender::on(const event::ReceiverLost& event, Seconds now, Actions& out) {
  for (const RequestKey& key : state_->keys_where([&](const State::Attempt& attempt) {
         return attempt.receiver == event.receiver && attempt.state != SenderState::kFlush && !attempt.without_receiver;
       })) {
    state_->go_without(state_->live.at(key), "receiver lost: " + event.reason, now, out);
    state_->settle(key);
  }
}

void Sender::on(const event::HeartbeatDue& event, Seconds now, Actions& out) {
  message::SenderHeartbeat heartbeat;
  for (const RequestKey& key : state_->keys_where(
           [&](const State::Attempt& attempt) { return has_grant(attempt) && attempt.receiver == event.receiver; })) {
    SenderGrant& grant = *state_->live.at(key).grant;
    grant.lease_until = now + state_->config.times.lease;
    heartbeat.grants.push_back(grant.id);
    state_->settle(key);
  }
  out.push_back(action::ToReceiver{event.receiver, std::move(heartbeat)});
}

void Sender::on(const event::Scheduled& event, Seconds now, Actions& out) {
  State::Attempt* attempt = state_->find(event.key);
  if (!attempt || attempt->state != SenderState::kQueued) return;
  const int groups =
      (state_->config.num_layers + state_->config.layers_per_group - 1) / state_->config.layers_per_group;
  attempt->blocks = event.blocks;
  attempt->prompt_tokens = event.prompt_tokens;
  attempt->computed.assign(static_cast<size_t>(groups), event.cached_tokens);
  attempt->state = SenderState::kCompute;
  if (!attempt->without_receiver) state_->reserve(*attempt, now, out);
  state_->settle(event.key);
}

void Sender::on(const event::LayersComputed& event, Seconds now, Actions& out) {
  State::Attempt* attempt = state_->find(event.key);
  if (!attempt || attempt->computed.empty()) return;
  const HandoverConfig& config = state_->config;
  const int end_layer = event.first_layer + event.num_layers;
  require(event.first_layer % config.layers_per_group == 0 &&
              (end_layer % config.layers_per_group == 0 || end_layer == config.num_layers),
          "layers [", event.first_layer, ", ", end_layer, ") are not whole groups of ", config.layers_per_group);
  for (int layer = event.first_layer; layer < end_layer; layer += config.layers_per_group) {
    attempt->computed[static_cast<size_t>(layer / config.layers_per_group)] = event.first_token + event.tokens;
  }
  if (attempt->state == SenderState::kPush) state_->go_on_pushing(*attempt, now, out);
  state_->settle(event.key);
}

void Sender::on(const event::Prefilled& event, Seconds now, Actions& out) {
  State::Attempt* attempt = state_->find(event.key);
  if (!attempt || attempt->state == SenderState::kFlush || attempt->first) return;
  attempt->first = event.first;
  attempt->remember(event.first);
  state_->say(*attempt, message::Outputs{event.key, {event.first}}, out);
  if (event.first.finish != FinishReason::kNone) {
    state_->abort(*attempt, out);
    state_->flush(*attempt, now, out);
  } else if (attempt->without_receiver) {
    state_->released(*attempt, now, out);
  } else if (attempt->state == SenderState::kPush) {
    state_->go_on_pushing(*attempt, now, out);
  }
  state_->settle(event.key);
}

void Sender::on(const event::Output& event) {
  if (State::Attempt* attempt = state_->find(event.key)) {
    attempt->remember(event.token);
  } else if (const auto gone = state_->gone.find(event.key); gone != state_->gone.end()) {
    gone->second.remember(event.token);  // came after its Finished
  }
}

void Sender::on(const event::Finished& event, Seconds now, Actions& out) {
  State::Attempt* attempt = state_->find(event.key);
  if (!attempt || !attempt->is_local()) return;
  if (event.finish == FinishReason::kCancelled) state_->notify(*attempt, message::Fenced{event.key}, out);
  state_->bury(*attempt, now);
  state_->settle(event.key);
}

void Sender::on(const event::Rejected& event, Seconds now, Actions& out) {
  State::Attempt* attempt = state_->find(event.failed.key);
  if (!attempt || attempt->state == SenderState::kFlush) return;
  state_->notify(*attempt, event.failed, out);
  state_->abort(*attempt, out);
  state_->bury(*attempt, now);
  state_->settle(event.failed.key);
}

void Sender::on(const event::PushDone& event, Seconds now, Actions& out) {
  State::Attempt* attempt = state_->find(event.key);
  require(attempt && attempt->pushes_in_flight > 0, "PushDone for ", event.key.str(), " which has none in flight");
  --attempt->pushes_in_flight;
  if (has_grant(*attempt) && attempt->grant->id == event.grant) {
    SenderGrant& grant = *attempt->grant;
    --grant.pushes_in_flight;
    grant.progress_at = now;
    grant.bytes += event.bytes;
    grant.checksum += event.checksum;
    if (!event.ok) {
      state_->await(*attempt, now, out);
    } else if (attempt->is_sent()) {
      state_->commit(*attempt, now, out);
    }
  } else if (attempt->state == SenderState::kAwait) {
    state_->leave_await(*attempt, now, out);
  } else if (attempt->state == SenderState::kFlush && attempt->pushes_in_flight == 0) {
    state_->flush(*attempt, now, out);
  }
  state_->settle(event.key);
}

void Sender::on(const event::EndpointFailed& event, Seconds now, Actions& out) {
  state_->endpoint_broken(event.peer, now, out);
}

void Sender::on(const event::EndpointClosed& event) { state_->closing.erase(event.peer); }

void Sender::cancel(const RequestKey& key, Seconds now, Actions& out) {
  if (State::Attempt* attempt = state_->find(key)) state_->end(*attempt, now, out);
  state_->settle(key);
}

void Sender::higher_attempt(const RequestKey& key, Seconds now, Actions& out) {
  for (const RequestKey& lower : state_->keys_where([&](const State::Attempt& attempt) {
         return attempt.key().without_attempt() == key.without_attempt() && attempt.key().attempt < key.attempt;
       })) {
    cancel(lower, now, out);
  }
}

void Sender::router_expired(uint64_t router_epoch, Seconds now, Actions& out) {
  for (const RequestKey& key :
       state_->keys_where([&](const State::Attempt& attempt) { return attempt.key().router_epoch == router_epoch; })) {
    cancel(key, now, out);
  }
}

bool Sender::knows(const RequestKey& key) const { return state_->live.contains(key) || state_->gone.contains(key); }

std::optional<SenderState> Sender::state(const RequestKey& key) const {
  if (const State::Attempt* attempt = state_->find(key)) return attempt->state;
  if (state_->gone.contains(key)) return SenderState::kGone;
  return std::nullopt;
}

SenderCounts Sender::counts() const {
  SenderCounts counts;
  for (const auto& [key, attempt] : state_->live) {
    switch (attempt.state) {
      case SenderState::kQueued: ++counts.queued; break;
      case SenderState::kCompute: ++counts.computing; break;
      case SenderState::kPush: ++counts.pushing; break;
      case SenderState::kAwait: ++counts.awaiting; break;
      case SenderState::kCommit: ++counts.committing; break;
      case SenderState::kLocal: ++counts.local; break;
      case SenderState::kFlush: ++counts.flushing; break;
      case SenderState::kGone: break;
    }
    counts.pushes_in_flight += attempt.pushes_in_flight;
    counts.source_blocks += static_cast<int64_t>(attempt.blocks.size());
  }
  counts.remembered = static_cast<int64_t>(state_->gone.size());
  return counts;
}

}  // namespace rtp_llm
