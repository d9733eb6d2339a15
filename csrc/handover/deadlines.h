// Deadlines: the next time that something of each key runs out, ordered.
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "handover/contract.h"
#include "handover/times.h"

namespace rtp_llm {

template <typename Key>
class Deadlines {
 public:
  // One deadline a key; nullopt: none.
  void set(const Key& key, std::optional<Seconds> at) {
    require(!at || *at == *at, "a deadline is no number");  // it would be equal to every other
    const auto known = at_.find(key);
    if (known != at_.end()) {
      if (at && *at == known->second) return;
      order_.erase({known->second, key});
      at_.erase(known);
    }
    if (!at) return;
    at_.emplace(key, *at);
    order_.emplace(*at, key);
  }

  std::optional<Seconds> next() const {
    if (order_.empty()) return std::nullopt;
    return order_.begin()->first;
  }

  // Takes one that is due; nullopt: none is.
  std::optional<Key> pop_due(Seconds now) {
    if (order_.empty() || order_.begin()->first > now) return std::nullopt;
    const Key key = order_.begin()->second;
    set(key, std::nullopt);
    return key;
  }

 private:
  std::unordered_map<Key, Seconds> at_;
  std::set<std::pair<Seconds, Key>> order_;
};

// The earlier of two deadlines that may be unset.
inline std::optional<Seconds> earlier(std::optional<Seconds> a, std::optional<Seconds> b) {
  if (!a) return b;
  if (!b) return a;
  return *a < *b ? a : b;
}

}  // namespace rtp_llm
