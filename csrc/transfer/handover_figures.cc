#include "transfer/handover_figures.h"

namespace rtp_llm {

void HandoverFigures::said(const message::FromSender& body, Seconds now) {
  if (const auto* commit = std::get_if<message::Commit>(&body))
    trace_.add({.time = now, .key = commit->key, .point = TracePoint::kCommitSent, .bytes = commit->bytes});
}

void HandoverFigures::heard(const message::FromReceiver& body, Seconds now) {
  if (const auto* granted = std::get_if<message::Granted>(&body))
    trace_.add(
        {.time = now, .key = granted->key, .point = TracePoint::kGranted, .first_token = granted->prefix_tokens});
  const auto* committed = std::get_if<message::PeerCommitted>(&body);
  if (!committed) return;
  trace_.add({.time = now, .key = committed->key, .point = TracePoint::kCommitted});
  const auto first = first_posted_.find(committed->key);
  if (first == first_posted_.end()) return;
  ++totals_.committed_sent;
  totals_.send_seconds += now - first->second;
  first_posted_.erase(first);
}

void HandoverFigures::said(const message::FromReceiver& body, Seconds now) {
  if (const auto* granted = std::get_if<message::Granted>(&body))
    trace_.add(
        {.time = now, .key = granted->key, .point = TracePoint::kGranted, .first_token = granted->prefix_tokens});
  totals_.no_room += std::holds_alternative<message::NoRoom>(body);
  totals_.expired += std::holds_alternative<message::Expired>(body);
  totals_.bad_checksum += std::holds_alternative<message::BadChecksum>(body);
}

void HandoverFigures::joined(const action::JoinSequence& action, const std::function<bool(const RequestKey&)>& knows,
                             Seconds now) {
  const RequestKey& key = action.spec->key;
  trace_.add({.time = now, .key = key, .point = TracePoint::kCommitted});
  ++totals_.committed_received;
  totals_.prefix_hit_tokens += static_cast<uint64_t>(action.prefix_tokens);
  if (const auto first = first_accepted_.find(key); first != first_accepted_.end())
    totals_.receive_seconds += now - first->second;
  std::erase_if(first_accepted_, [&](const auto& entry) { return entry.first == key || !knows(entry.first); });
}

}  // namespace rtp_llm
