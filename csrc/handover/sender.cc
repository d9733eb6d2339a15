#include "handover/sender.h"

#include <utility>

#include "handover/contract.h"
#include "handover/sender_table.h"

namespace rtp_llm {

namespace {

// The key that a receiver's message is about.
const RequestKey& key_of(const message::FromReceiver& body) {
  return std::visit([](const auto& message) -> const RequestKey& { return message.key; }, body);
}

}  // namespace

Sender::Sender(WorkerKey self, const HandoverConfig& config, AttemptLedger& ledger, RouterSessions& routers)
    : table_(std::make_unique<SenderTable>(std::move(self), config, ledger, routers)) {
  require(config.max_push_tokens % config.block_tokens == 0, "max_push_tokens ", config.max_push_tokens,
          " is not a multiple of block_tokens ", config.block_tokens);
}

Sender::~Sender() = default;

void Sender::expire(Seconds now, Actions& out) {
  while (const auto key = table_->deadlines.pop_due(now)) {
    if (SenderAttempt* attempt = table_->find(*key)) table_->ran_out(*attempt, now, out);
    table_->settle(*key);
  }
  table_->forget_remembered(table_->config.times.memory, now);
}

std::optional<Seconds> Sender::next_deadline() const {
  return earlier(table_->deadlines.next(), table_->next_to_forget(table_->config.times.memory));
}

void Sender::on(const event::FromRouter& event, const message::Submit& body, Seconds now, Actions& out) {
  table_->submit(event, body, out, now);
  table_->settle(body.spec->key);
}

void Sender::attach(const message::AttachEntry& entry, Actions& out) const {
  if (const SenderAttempt* attempt = table_->find(entry.key)) {
    table_->replay(*attempt, entry.next_position, out);
  } else if (const auto known = table_->remembered.find(entry.key); known != table_->remembered.end()) {
    table_->replay(known->second, entry.next_position, out);
  }
}

void Sender::on(const event::FromReceiver& event, Seconds now, Actions& out) {
  const RequestKey key = key_of(event.body);
  SenderAttempt* attempt = table_->find(key);
  if (attempt && attempt->receiver == event.receiver) {
    table_->from_receiver(*attempt, event.body, now, out);
    table_->settle(key);
  } else if (const auto* granted = std::get_if<message::Granted>(&event.body)) {
    out.push_back(action::ToReceiver{event.receiver, message::Abort{key, granted->grant}});  // nobody will use it
  }
}

void Sender::on(const event::ReceiverLost& event, Seconds now, Actions& out) {
  for (const RequestKey& key : table_->keys_where([&](const SenderAttempt& attempt) {
         return attempt.receiver == event.receiver && attempt.state != SenderState::kFlush && !attempt.without_receiver;
       })) {
    table_->go_without(table_->live.at(key), "receiver lost: " + event.reason, now, out);
    table_->settle(key);
  }
}

void Sender::on(const event::HeartbeatDue& event, Seconds now, Actions& out) {
  message::SenderHeartbeat heartbeat;
  for (const RequestKey& key : table_->keys_where(
           [&](const SenderAttempt& attempt) { return attempt.has_grant() && attempt.receiver == event.receiver; })) {
    SenderGrant& grant = *table_->live.at(key).grant;
    grant.lease_until = now + table_->config.times.lease;
    heartbeat.grants.push_back(grant.id);
    table_->settle(key);
  }
  out.push_back(action::ToReceiver{event.receiver, std::move(heartbeat)});
}

void Sender::on(const event::Scheduled& event, Seconds now, Actions& out) {
  SenderAttempt* attempt = table_->find(event.key);
  if (!attempt || attempt->state != SenderState::kQueued) return;
  const int groups =
      (table_->config.num_layers + table_->config.layers_per_message - 1) / table_->config.layers_per_message;
  attempt->blocks = event.blocks;
  attempt->num_tokens = event.tokens;
  attempt->computed.assign(static_cast<size_t>(groups), event.cached_tokens);
  attempt->state = SenderState::kCompute;
  if (!attempt->without_receiver) table_->reserve(*attempt, now, out);
  table_->settle(event.key);
}

void Sender::on(const event::LayersComputed& event, Seconds now, Actions& out) {
  SenderAttempt* attempt = table_->find(event.key);
  if (!attempt || attempt->computed.empty()) return;
  const HandoverConfig& config = table_->config;
  const int end_layer = event.first_layer + event.num_layers;
  require(event.first_layer % config.layers_per_message == 0 &&
              (end_layer % config.layers_per_message == 0 || end_layer == config.num_layers),
          "layers [", event.first_layer, ", ", end_layer, ") are not whole groups of ", config.layers_per_message);
  for (int layer = event.first_layer; layer < end_layer; layer += config.layers_per_message) {
    attempt->computed[static_cast<size_t>(layer / config.layers_per_message)] = event.first_token + event.tokens;
  }
  if (attempt->state == SenderState::kPush) table_->go_on_pushing(*attempt, now, out);
  table_->settle(event.key);
}

void Sender::on(const event::Prefilled& event, Seconds now, Actions& out) {
  SenderAttempt* attempt = table_->find(event.key);
  if (!attempt || attempt->state == SenderState::kFlush || attempt->first) return;
  attempt->first = event.first;
  if (event.first.finish != FinishReason::kNone) {
    table_->say_first(*attempt, out);
    table_->abort(*attempt, out);
    table_->flush(*attempt, now, out);
  } else if (attempt->without_receiver) {
    table_->released(*attempt, now, out);
  } else if (attempt->state == SenderState::kPush) {
    table_->say_first(*attempt, out);
    table_->go_on_pushing(*attempt, now, out);
  } else if (table_->routers.at_most_one()) {  // which plans no handover beyond the receiver's slots
    table_->say_first(*attempt, out);
  }
  table_->settle(event.key);
}

void Sender::on(const event::Output& event) {
  if (SenderAttempt* attempt = table_->find(event.key)) {
    attempt->outputs.note(event.token);
  } else if (const auto known = table_->remembered.find(event.key); known != table_->remembered.end()) {
    known->second.outputs.note(event.token);  // came after its Finished
  }
}

void Sender::on(const event::Finished& event, Seconds now, Actions& out) {
  SenderAttempt* attempt = table_->find(event.key);
  if (!attempt || attempt->state == SenderState::kFlush) return;
  const bool given_up = event.finish == FinishReason::kCancelled;  // by the engine: nobody asked for it
  if (given_up && !attempt->first) table_->notify(*attempt, message::Fenced{event.key}, out);
  if (attempt->is_local()) {
    table_->remember(*attempt, now);
  } else if (given_up && !attempt->first) {
    table_->abort(*attempt, out);
    table_->flush(*attempt, now, out);
  }
  table_->settle(event.key);
}

void Sender::on(const event::Rejected& event, Seconds now, Actions& out) {
  SenderAttempt* attempt = table_->find(event.failed.key);
  if (!attempt || attempt->state == SenderState::kFlush) return;
  table_->notify(*attempt, event.failed, out);
  table_->abort(*attempt, out);
  if (attempt->blocks.empty()) {
    table_->remember(*attempt, now);
  } else {  // the engine has it after all
    if (!attempt->first) out.push_back(action::CancelSequence{event.failed.key});
    table_->flush(*attempt, now, out);
  }
  table_->settle(event.failed.key);
}

void Sender::on(const event::PushDone& event, Seconds now, Actions& out) {
  SenderAttempt* attempt = table_->find(event.key);
  require(attempt && attempt->pushes_in_flight > 0, "PushDone for ", event.key.str(), " which has none in flight");
  --attempt->pushes_in_flight;
  if (attempt->has_grant() && attempt->grant->id == event.grant) {
    SenderGrant& grant = *attempt->grant;
    --grant.pushes_in_flight;
    grant.progress_at = now;
    grant.bytes += event.bytes;
    grant.checksum += event.checksum;
    if (!event.ok) {
      table_->await(*attempt, now, out);
    } else if (attempt->is_sent()) {
      table_->commit(*attempt, now, out);
    }
  } else if (attempt->state == SenderState::kAwait) {
    table_->leave_await(*attempt, now, out);
  } else if (attempt->state == SenderState::kFlush && attempt->pushes_in_flight == 0) {
    table_->flush(*attempt, now, out);
  }
  table_->settle(event.key);
}

void Sender::on(const event::EndpointFailed& event, Seconds now, Actions& out) {
  table_->endpoint_broken(event.peer, now, out);
}

void Sender::on(const event::EndpointClosed& event) { table_->closing.erase(event.peer); }

void Sender::cancel(const RequestKey& key, Seconds now, Actions& out) {
  if (SenderAttempt* attempt = table_->find(key)) table_->end(*attempt, now, out);
  table_->settle(key);
}

void Sender::higher_attempt(const RequestKey& key, Seconds now, Actions& out) {
  for (const RequestKey& lower : table_->keys_where([&](const SenderAttempt& attempt) {
         return attempt.key.without_attempt() == key.without_attempt() && attempt.key.attempt < key.attempt;
       })) {
    cancel(lower, now, out);
  }
}

void Sender::router_expired(uint64_t router_epoch, Seconds now, Actions& out) {
  for (const RequestKey& key :
       table_->keys_where([&](const SenderAttempt& attempt) { return attempt.key.router_epoch == router_epoch; })) {
    cancel(key, now, out);
  }
}

bool Sender::knows(const RequestKey& key) const { return table_->knows(key); }

std::optional<SenderState> Sender::state(const RequestKey& key) const {
  if (const SenderAttempt* attempt = table_->find(key)) return attempt->state;
  if (table_->remembered.contains(key)) return SenderState::kGone;
  return std::nullopt;
}

SenderCounts Sender::counts() const {
  SenderCounts counts;
  for (const auto& [key, attempt] : table_->live) {
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
  counts.remembered = static_cast<int64_t>(table_->remembered.size());
  return counts;
}

}  // namespace rtp_llm
