#include "handover/receiver.h"

#include <utility>

#include "handover/contract.h"
#include "handover/receiver_table.h"

namespace rtp_llm {

Receiver::Receiver(WorkerKey self, const HandoverConfig& config, GrantPool& pool, AttemptLedger& ledger,
                   RouterSessions& routers)
    : table_(std::make_unique<ReceiverTable>(std::move(self), config, pool, ledger, routers)) {}

Receiver::~Receiver() = default;

void Receiver::expire(Seconds now, Actions& out) {
  while (const auto key = table_->deadlines.pop_due(now)) table_->ran_out(table_->live.at(*key), now, out);
  while (const auto id = table_->quarantines.pop_due(now)) table_->close_endpoint(*id, now, out);
  table_->forget_remembered(table_->config.times.memory, now);
  table_->settle(now, out);
}

std::optional<Seconds> Receiver::next_deadline() const {
  return earlier(earlier(table_->deadlines.next(), table_->quarantines.next()),
                 table_->next_to_forget(table_->config.times.memory));
}

std::variant<Destination, Refusal> Receiver::accept(const WorkerKey& sender, const KvMessageHeader& header,
                                                    uint64_t payload_bytes, Seconds now) {
  if (header.version != KvMessageHeader{}.version) return Refusal::kVersion;
  if (header.receiver_epoch != table_->self.epoch) return Refusal::kEpoch;
  const auto found = table_->grants.find(header.grant);
  if (found == table_->grants.end() || !found->second.live) return Refusal::kNoSuchGrant;
  ReceiverGrant& grant = found->second;
  if (grant.sender != sender) return Refusal::kSender;
  if (const auto refusal = grant.check(header, payload_bytes, table_->config)) return *refusal;
  if (grant.receives_in_flight++ == 0) grant.receiving_since = now;
  grant.bytes_accepted += payload_bytes;
  ReceiverAttempt& attempt = table_->live.at(grant.key);
  if (attempt.state == ReceiverState::kVerify) {
    table_->set_deadline(attempt, now + table_->config.times.verify_stall);
  }
  const auto first_token = static_cast<int32_t>(header.first_token);
  const auto tokens = static_cast<int32_t>(header.tokens);
  const auto begin = grant.reservation.blocks.begin() + first_token / table_->config.block_tokens;
  const auto last = grant.reservation.blocks.begin() + (first_token + tokens - 1) / table_->config.block_tokens;
  return Destination{grant.id,    grant.key, header.first_layer, header.num_layers,
                     first_token, tokens,    {begin, last + 1}};
}

void Receiver::on(const event::FromSender& event, Seconds now, Actions& out) {
  if (const auto* reserve = std::get_if<message::Reserve>(&event.body)) {
    table_->reserve(event, *reserve, now, out);
  } else if (const auto* commit = std::get_if<message::Commit>(&event.body)) {
    table_->commit(event.sender, *commit, now, out);
  } else if (const auto* abort = std::get_if<message::Abort>(&event.body)) {
    table_->abort(event.sender, *abort, now, out);
  } else if (const auto* heartbeat = std::get_if<message::SenderHeartbeat>(&event.body)) {
    table_->renew_leases(event.sender, heartbeat->grants, now);
  }
  table_->settle(now, out);
}

void Receiver::on(const event::SenderLost& event, Seconds now, Actions& out) {
  for (const RequestKey& key : table_->keys_where([&](const ReceiverAttempt& attempt) {
         return attempt.sender == event.sender &&
                (attempt.state == ReceiverState::kQueued || attempt.state == ReceiverState::kGranted);
       })) {
    const ReceiverAttempt& attempt = table_->live.at(key);
    if (attempt.state == ReceiverState::kGranted) table_->void_grant(attempt.grant, now);
    table_->forget(key);
  }
  table_->room_changed = true;
  table_->settle(now, out);
}

void Receiver::attach(const message::AttachEntry& entry, Actions& out) const {
  const ReceiverAttempt* attempt = table_->find(entry.key);
  if (!attempt) attempt = &table_->remembered.at(entry.key);
  if (attempt->state == ReceiverState::kRunning || attempt->finished) {
    message::Outputs outputs{entry.key, attempt->outputs.from(entry.next_position)};
    table_->to_router(entry.key, attempt->committed(), out);
    if (!outputs.tokens.empty()) table_->to_router(entry.key, std::move(outputs), out);
  } else if (attempt->state == ReceiverState::kOver) {
    table_->to_router(entry.key, message::Fenced{entry.key}, out);
  }
}

void Receiver::on(const event::Output& event) {
  if (ReceiverAttempt* attempt = table_->find(event.key)) {
    if (attempt->state == ReceiverState::kRunning) attempt->outputs.note(event.token);
  } else if (const auto known = table_->remembered.find(event.key);
             known != table_->remembered.end() && known->second.finished) {
    known->second.outputs.note(event.token);  // came after its Finished
  }
}

void Receiver::on(const event::Finished& event, Seconds now, Actions& out) {
  ReceiverAttempt* attempt = table_->find(event.key);
  if (!attempt || attempt->state != ReceiverState::kRunning) return;
  const bool cancelled = event.finish == FinishReason::kCancelled;  // by the engine: nobody asked for it
  if (cancelled) table_->to_router(event.key, message::Fenced{event.key}, out);
  table_->remember(*attempt, !cancelled, now);
}

void Receiver::on(const event::Rejected& event, Seconds now, Actions& out) {
  ReceiverAttempt* attempt = table_->find(event.failed.key);
  if (!attempt || attempt->state != ReceiverState::kRunning) return;
  table_->to_router(event.failed.key, event.failed, out);
  table_->remember(*attempt, false, now);
}

void Receiver::on(const event::RoomChanged&, Seconds now, Actions& out) { table_->serve_queue(now, out); }

void Receiver::on(const event::ReceiveDone& event, Seconds now, Actions& out) {
  const auto found = table_->grants.find(event.grant);
  require(found != table_->grants.end() && found->second.receives_in_flight > 0, "ReceiveDone for grant ", event.grant,
          " which has none in flight");
  ReceiverGrant& grant = found->second;
  if (--grant.receives_in_flight == 0) grant.receiving += now - grant.receiving_since;
  if (event.ok) {
    grant.bytes_received += event.bytes;
    grant.checksum += event.checksum;
    grant.verify += event.verify;
  }
  if (grant.live) {
    ReceiverAttempt& attempt = table_->live.at(grant.key);
    if (attempt.state == ReceiverState::kVerify) {
      if (event.ok) table_->set_deadline(attempt, now + table_->config.times.verify_stall);
      table_->verify(attempt, now, out);
    }
  } else if (grant.receives_in_flight == 0) {
    table_->free_quarantined(event.grant);
  }
  table_->settle(now, out);
}

void Receiver::on(const event::EndpointClosed& event) { table_->closing.erase(event.peer); }

void Receiver::cancel(const RequestKey& key, Seconds now, Actions& out) {
  table_->end(key, now, out);
  table_->settle(now, out);
}

void Receiver::fence(const RequestKey& key, Seconds now, Actions& out) {
  const ReceiverAttempt* attempt = table_->find(key);
  if (attempt && attempt->state == ReceiverState::kRunning) {
    table_->to_router(key, attempt->committed(), out);
    return;
  }
  table_->end(key, now, out);
  if (const ReceiverAttempt& over = table_->remembered.at(key); over.finished) {
    table_->to_router(key, over.committed(), out);
  } else {
    table_->to_router(key, message::Fenced{key}, out);
  }
  table_->settle(now, out);
}

void Receiver::higher_attempt(const RequestKey& key, Seconds now, Actions& out) {
  for (const RequestKey& lower : table_->keys_where([&](const ReceiverAttempt& attempt) {
         return attempt.key.without_attempt() == key.without_attempt() && attempt.key.attempt < key.attempt;
       })) {
    table_->end(lower, now, out);
  }
  table_->settle(now, out);
}

void Receiver::router_expired(uint64_t router_epoch, Seconds now, Actions& out) {
  for (const RequestKey& key :
       table_->keys_where([&](const ReceiverAttempt& attempt) { return attempt.key.router_epoch == router_epoch; })) {
    table_->end(key, now, out);
  }
  table_->settle(now, out);
}

bool Receiver::knows(const RequestKey& key) const { return table_->knows(key); }

std::optional<ReceiverState> Receiver::state(const RequestKey& key) const {
  if (const ReceiverAttempt* attempt = table_->find(key)) return attempt->state;
  if (table_->remembered.contains(key)) return ReceiverState::kOver;
  return std::nullopt;
}

bool Receiver::has_queue() const { return !table_->queue.empty(); }

ReceiverCounts Receiver::counts() const {
  ReceiverCounts counts;
  for (const auto& [key, attempt] : table_->live) {
    switch (attempt.state) {
      case ReceiverState::kQueued: ++counts.queued; break;
      case ReceiverState::kGranted: ++counts.granted; break;
      case ReceiverState::kVerify: ++counts.verifying; break;
      case ReceiverState::kRunning: ++counts.running; break;
      case ReceiverState::kOver: break;
    }
  }
  for (const auto& [id, grant] : table_->grants) {
    ++(grant.live ? counts.live_grants : counts.quarantined_grants);
    (grant.live ? counts.granted_blocks : counts.quarantined_blocks) += grant.fresh_blocks();
    counts.receives_in_flight += grant.receives_in_flight;
  }
  counts.remembered = static_cast<int64_t>(table_->remembered.size());
  return counts;
}

}  // namespace rtp_llm
