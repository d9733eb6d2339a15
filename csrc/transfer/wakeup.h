// Wakeup: blocks one thread until one of its fds is readable or a deadline has come.
#pragma once

#include <initializer_list>
#include <optional>

#include "handover/times.h"

namespace rtp_llm {

class Wakeup {
 public:
  // REQUIRES: the fds outlive this.
  explicit Wakeup(std::initializer_list<int> fds);
  Wakeup(const Wakeup&) = delete;
  ~Wakeup();

  // deadline: seconds of the monotonic clock; nullopt: fds alone.
  void wait(std::optional<Seconds> deadline);

 private:
  int epoll_ = -1;
  int timer_ = -1;
};

}  // namespace rtp_llm
