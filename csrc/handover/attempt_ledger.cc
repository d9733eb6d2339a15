#include "handover/attempt_ledger.h"

namespace rtp_llm {

bool AttemptLedger::raise(const RequestKey& key, Seconds now) {
  const RequestKey answer = key.without_attempt();
  const auto [entry, is_new] = highest_.try_emplace(answer, Entry{key.attempt, now});
  const bool higher = is_new || key.attempt > entry->second.attempt;
  if (higher) entry->second.attempt = key.attempt;
  entry->second.named_at = now;
  order_.emplace_back(now, answer);
  return higher;
}

bool AttemptLedger::is_stale(const RequestKey& key) const {
  const auto entry = highest_.find(key.without_attempt());
  return entry != highest_.end() && entry->second.attempt > key.attempt;
}

void AttemptLedger::forget(Seconds now) {
  while (!order_.empty() && order_.front().first + memory_ <= now) {
    const auto& [named_at, answer] = order_.front();
    const auto entry = highest_.find(answer);
    if (entry != highest_.end() && entry->second.named_at == named_at) highest_.erase(entry);
    order_.pop_front();
  }
}

}  // namespace rtp_llm
