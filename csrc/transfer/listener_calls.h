// ListenerCalls: what a transport's listener is to be told. UCX's callbacks leave it here, progress() tells it.
#pragma once

#include <deque>
#include <functional>
#include <utility>

#include "transfer/transport.h"

namespace rtp_llm {

class ListenerCalls {
 public:
  explicit ListenerCalls(TransportListener& listener) : listener_(listener) {}

  TransportListener& listener() { return listener_; }
  bool empty() const { return waiting_.empty(); }
  void later(std::function<void(TransportListener&)> call) { waiting_.push_back(std::move(call)); }
  // In order; what a call adds, too. False: there were none.
  bool make() {
    bool any = false;
    for (; !waiting_.empty(); any = true) {
      auto next = std::move(waiting_.front());
      waiting_.pop_front();
      next(listener_);
    }
    return any;
  }

 private:
  TransportListener& listener_;
  std::deque<std::function<void(TransportListener&)>> waiting_;
};

}  // namespace rtp_llm
