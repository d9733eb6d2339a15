// OutputQueue: what was sampled and not taken yet, for all sequences, and who is told about it.
// Thread rule: any thread.
#pragma once

#include <functional>
#include <mutex>

#include "handover/token_columns.h"

namespace rtp_llm {

class OutputQueue {
 public:
  // Before the engine starts.
  void set_notify(std::function<void()> notify) { notify_ = std::move(notify); }

  // Appends `columns` (left empty, capacities kept); notifies if the queue was empty.
  void publish(TokenColumns& columns);
  // The taker allocates the buffers that publish() fills next, as large as those it leaves with.
  TokenColumns take();
  // Wakes whoever waits for outputs though there are none: the engine has failed.
  void notify() const {
    if (notify_) notify_();
  }

 private:
  std::mutex mutex_;
  TokenColumns columns_;
  std::function<void()> notify_;
};

}  // namespace rtp_llm
