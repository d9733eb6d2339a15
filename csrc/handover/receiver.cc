#include "handover/receiver.h"

#include <utility>

#include "handover/contract.h"
#include "handover/receiver_state.h"

namespace rtp_llm {

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
  const auto begin = grant.reservation.blocks.begin() + first_token / state_->config.block_tokens;
  const auto last = grant.reservation.blocks.begin() + (first_token + tokens - 1) / state_->config.block_tokens;
  return Destination{grant.id,    grant.key, header.first_layer, header.num_layers,
                     first_token, tokens,    {begin, last + 1}};
}

void Receiver::on(const event::FromSender& event, Seconds now, Actions& out) {
  if (const auto* reserve = std::get_if<message::Reserve>(&event.body)) {
    state_->reserve(event, *reserve, now, out);
  } else if (const auto* commit = std::get_if<message::Commit>(&event.body)) {
    state_->commit(event.sender, *commit, now, out);
  } else if (const auto* abort = std::get_if<message::Abort>(&event.body)) {
    state_->abort(event.sender, *abort, now, out);
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
  state_->room_changed = true;
  state_->settle(now, out);
}

void Receiver::attach(const message::AttachEntry& entry, Actions& out) const {
  const State::Attempt* attempt = state_->find(entry.key);
  if (!attempt) attempt = &state_->over.at(entry.key);
  if (attempt->state == ReceiverState::kRunning || attempt->finished) {
    message::Outputs outputs{entry.key, attempt->outputs.from(entry.next_position)};
    state_->to_router(entry.key, message::Committed{entry.key}, out);
    if (!outputs.tokens.empty()) state_->to_router(entry.key, std::move(outputs), out);
  } else if (attempt->state == ReceiverState::kOver) {
    state_->to_router(entry.key, message::Fenced{entry.key}, out);
  }
}

void Receiver::on(const event::Output& event) {
  if (State::Attempt* attempt = state_->find(event.key)) {
    if (attempt->state == ReceiverState::kRunning) attempt->outputs.note(event.token);
  } else if (const auto known = state_->over.find(event.key); known != state_->over.end() && known->second.finished) {
    known->second.outputs.note(event.token);  // came after its Finished
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

bool Receiver::has_queue() const { return !state_->queue.empty(); }

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
