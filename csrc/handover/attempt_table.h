// AttemptTable: what a machine knows of its keys: attempts that live, those that are over and still remembered, and
// when what runs out for whom. Private to Sender and Receiver.
#pragma once

#include <algorithm>
#include <deque>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "handover/deadlines.h"
#include "handover/times.h"
#include "handover/types.h"

namespace rtp_llm {

template <class Attempt>
struct AttemptTable {
  std::unordered_map<RequestKey, Attempt> live;
  std::unordered_map<RequestKey, Attempt> remembered;  // for a replay, and for what comes late
  std::deque<std::pair<Seconds, RequestKey>> remembered_since;
  Deadlines<RequestKey> deadlines;
  std::set<WorkerKey> closing;  // endpoints, until EndpointClosed

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
  bool knows(const RequestKey& key) const { return live.contains(key) || remembered.contains(key); }

  // A live attempt is over.
  void move_to_remembered(Attempt& attempt, Seconds now) {
    const RequestKey key = attempt.key;
    deadlines.set(key, std::nullopt);
    remembered.emplace(key, std::move(attempt));
    remembered_since.emplace_back(now, key);
    live.erase(key);
  }
  void forget_remembered(Seconds memory, Seconds now) {
    for (; !remembered_since.empty() && remembered_since.front().first + memory <= now; remembered_since.pop_front())
      remembered.erase(remembered_since.front().second);
  }
  std::optional<Seconds> next_to_forget(Seconds memory) const {
    if (remembered_since.empty()) return std::nullopt;
    return remembered_since.front().first + memory;
  }
};

}  // namespace rtp_llm
