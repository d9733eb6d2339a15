#include "handover/handover.h"

#include <type_traits>
#include <utility>

#include "handover/deadlines.h"

namespace rtp_llm {

Handover::Handover(WorkerKey self, const HandoverConfig& config, GrantPool& pool)
    : routers_(config.times),
      ledger_(config.times.memory),
      sender_(self, config, ledger_, routers_),
      receiver_(self, config, pool, ledger_, routers_) {}

void Handover::handle(const Event& event, Seconds now, Actions& out) {
  expire(now, out);
  const auto dispatch = [&](const auto& body) {
    using T = std::decay_t<decltype(body)>;
    if constexpr (std::is_same_v<T, event::FromRouter>) {
      from_router(body, now, out);
    } else if constexpr (std::is_same_v<T, event::RouterConnected>) {
      routers_.connected(body.router_epoch);
    } else if constexpr (std::is_same_v<T, event::RouterLost>) {
      routers_.lost(body.router_epoch, now);
    } else if constexpr (std::is_same_v<T, event::DrainingEnded>) {
      routers_.end_draining();
    } else if constexpr (std::is_same_v<T, event::FromSender>) {
      from_sender(body, now, out);
    } else if constexpr (std::is_same_v<T, event::SenderLost> || std::is_same_v<T, event::RoomChanged> ||
                         std::is_same_v<T, event::ReceiveDone>) {
      receiver_.on(body, now, out);
    } else if constexpr (std::is_same_v<T, event::Output>) {
      sender_.on(body);
      receiver_.on(body);
    } else if constexpr (std::is_same_v<T, event::Finished> || std::is_same_v<T, event::Rejected>) {
      sender_.on(body, now, out);
      receiver_.on(body, now, out);
    } else if constexpr (std::is_same_v<T, event::EndpointFailed>) {
      if (body.direction == Direction::kSend) sender_.on(body, now, out);
    } else if constexpr (std::is_same_v<T, event::EndpointClosed>) {
      body.direction == Direction::kSend ? sender_.on(body) : receiver_.on(body);
    } else if constexpr (!std::is_same_v<T, event::Tick>) {
      sender_.on(body, now, out);
    }
  };
  std::visit(dispatch, event);
}

std::variant<Destination, Refusal> Handover::accept(const WorkerKey& sender, const KvMessageHeader& header,
                                                    uint64_t payload_bytes, Seconds now, Actions& out) {
  expire(now, out);
  return receiver_.accept(sender, header, payload_bytes, now);
}

void Handover::from_sender(const event::FromSender& event, Seconds now, Actions& out) {
  if (const auto* reserve = std::get_if<message::Reserve>(&event.body)) {
    const RequestKey key = reserve->spec->key;
    raise(key, now, out);
    if (sender_.knows(key)) {  // an attempt has one role here: the engine knows one sequence of its name
      out.push_back(action::ToSender{event.sender, message::PeerFenced{key}});
      return;
    }
  }
  receiver_.on(event, now, out);
}

// A router speaks of its own answers only.
void Handover::from_router(const event::FromRouter& event, Seconds now, Actions& out) {
  const auto is_own = [&](const RequestKey& key) { return key.router_epoch == event.router_epoch; };
  if (const auto* submit = std::get_if<message::Submit>(&event.body)) {
    const RequestKey key = submit->spec->key;
    if (!is_own(key)) return;
    raise(key, now, out);
    if (receiver_.knows(key)) {  // cancelled or fenced before it came
      out.push_back(action::ToRouter{event.router_epoch, message::Fenced{key}});
    } else {
      sender_.on(event, *submit, now, out);
    }
  } else if (const auto* cancel = std::get_if<message::Cancel>(&event.body)) {
    if (!is_own(cancel->key)) return;
    raise(cancel->key, now, out);
    sender_.knows(cancel->key) ? sender_.cancel(cancel->key, now, out) : receiver_.cancel(cancel->key, now, out);
  } else if (const auto* fence = std::get_if<message::Fence>(&event.body)) {
    if (!is_own(fence->key)) return;
    raise(fence->key, now, out);
    receiver_.fence(fence->key, now, out);
  } else if (const auto* attach = std::get_if<message::Attach>(&event.body)) {
    for (const message::AttachEntry& entry : attach->entries)
      if (is_own(entry.key)) attach_one(event.router_epoch, entry, out);
  } else if (std::holds_alternative<message::DrainingAcknowledged>(event.body)) {
    routers_.acknowledge_draining(event.router_epoch);
  }
}

void Handover::attach_one(uint64_t router_epoch, const message::AttachEntry& entry, Actions& out) const {
  if (sender_.knows(entry.key)) {
    sender_.attach(entry, out);
  } else if (receiver_.knows(entry.key)) {
    receiver_.attach(entry, out);
  } else if (entry.role != message::AttachRole::kReceiver) {  // there the Reserve may still come
    out.push_back(action::ToRouter{router_epoch, message::Fenced{entry.key}});
  }
}

void Handover::raise(const RequestKey& key, Seconds now, Actions& out) {
  if (!ledger_.raise(key, now)) return;
  sender_.higher_attempt(key, now, out);
  receiver_.higher_attempt(key, now, out);
}

void Handover::expire(Seconds now, Actions& out) {
  for (uint64_t router_epoch : routers_.expire(now)) {
    sender_.router_expired(router_epoch, now, out);
    receiver_.router_expired(router_epoch, now, out);
  }
  ledger_.forget(now);
  sender_.expire(now, out);
  receiver_.expire(now, out);
}

std::optional<Seconds> Handover::next_deadline() const {
  return earlier(routers_.next_deadline(), earlier(sender_.next_deadline(), receiver_.next_deadline()));
}

bool Handover::idle() const {
  const SenderCounts s = sender_.counts();
  const ReceiverCounts r = receiver_.counts();
  return s.queued + s.computing + s.pushing + s.awaiting + s.committing + s.local + s.flushing == 0 &&
         s.pushes_in_flight + s.source_blocks == 0 && r.queued + r.granted + r.verifying + r.running == 0 &&
         r.live_grants + r.quarantined_grants + r.granted_blocks + r.quarantined_blocks + r.receives_in_flight == 0;
}

}  // namespace rtp_llm
