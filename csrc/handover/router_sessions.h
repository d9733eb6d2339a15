// RouterSessions: which routers this worker still answers to. A router whose session is lost
// expires after a while, and its sequences with it.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "handover/times.h"

namespace rtp_llm {

class RouterSessions {
 public:
  explicit RouterSessions(const HandoverTimes& times) : times_(times) {}

  void connected(uint64_t router_epoch);
  void lost(uint64_t router_epoch, Seconds now);
  // A peer names a router. One that never had a session here is counted as lost now: so its
  // sequences end if it never comes. False if it has expired.
  bool admits(uint64_t router_epoch, Seconds now);
  bool expired(uint64_t router_epoch) const { return expired_.contains(router_epoch); }
  // No other router may have work here: the one that is known sees all of it.
  bool at_most_one() const { return connected_.size() + lost_.size() <= 1; }
  // Routers whose time ran out by now; forgets old ones.
  std::vector<uint64_t> expire(Seconds now);
  std::optional<Seconds> next_deadline() const;

  // No new work of this router: it has acknowledged that the worker drains.
  void acknowledge_draining(uint64_t router_epoch) { draining_.insert(router_epoch); }
  bool draining(uint64_t router_epoch) const { return draining_.contains(router_epoch); }
  void end_draining() { draining_.clear(); }

 private:
  HandoverTimes times_;
  std::unordered_set<uint64_t> connected_;
  std::unordered_map<uint64_t, Seconds> lost_;     // and when
  std::unordered_map<uint64_t, Seconds> expired_;  // and when
  std::unordered_set<uint64_t> draining_;
};

}  // namespace rtp_llm
