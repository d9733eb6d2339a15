#include "handover/router_sessions.h"

#include <algorithm>

#include "handover/deadlines.h"

namespace rtp_llm {

void RouterSessions::connected(uint64_t router_epoch) {
  connected_.insert(router_epoch);
  lost_.erase(router_epoch);
  expired_.erase(router_epoch);
}

void RouterSessions::lost(uint64_t router_epoch, Seconds now) {
  connected_.erase(router_epoch);
  lost_.try_emplace(router_epoch, now);
}

bool RouterSessions::admits(uint64_t router_epoch, Seconds now) {
  if (expired_.contains(router_epoch)) return false;
  if (!connected_.contains(router_epoch)) lost_.try_emplace(router_epoch, now);
  return true;
}

std::vector<uint64_t> RouterSessions::expire(Seconds now) {
  std::vector<uint64_t> over;
  for (const auto& [epoch, since] : lost_) {
    if (since + times_.router_expiry <= now) over.push_back(epoch);
  }
  std::sort(over.begin(), over.end());
  for (uint64_t epoch : over) {
    lost_.erase(epoch);
    expired_.emplace(epoch, now);
  }
  std::erase_if(expired_, [&](const auto& entry) {
    if (entry.second + times_.memory > now) return false;
    draining_.erase(entry.first);
    return true;
  });
  return over;
}

std::optional<Seconds> RouterSessions::next_deadline() const {
  std::optional<Seconds> next;
  for (const auto& [epoch, since] : lost_) next = earlier(next, since + times_.router_expiry);
  for (const auto& [epoch, since] : expired_) next = earlier(next, since + times_.memory);
  return next;
}

}  // namespace rtp_llm
