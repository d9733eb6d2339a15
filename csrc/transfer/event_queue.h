// EventQueue: many producers, one consumer that waits for its fd to become readable.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "tensor/check.h"

namespace rtp_llm {

template <class T>
class EventQueue {
 public:
  EventQueue() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (fd_ < 0) throw Unavailable(concat("eventfd: ", std::strerror(errno)));
  }
  EventQueue(const EventQueue&) = delete;
  ~EventQueue() { close(fd_); }

  // Readable while take() would return something (or did, a moment ago).
  int fd() const { return fd_; }

  void push(T item) {
    std::lock_guard lock(mutex_);
    items_.push_back(std::move(item));
    if (items_.size() == 1) eventfd_write(fd_, 1);
  }

  // All items in the order of push(); empty if none.
  std::vector<T> take() {
    std::lock_guard lock(mutex_);
    if (items_.empty()) return {};
    eventfd_t count;
    eventfd_read(fd_, &count);
    return std::exchange(items_, {});
  }

  // The same into `items`, whose memory the queue goes on with: in the long run push() allocates nothing.
  void take(std::vector<T>& items) {
    items.clear();
    std::lock_guard lock(mutex_);
    if (items_.empty()) return;
    eventfd_t count;
    eventfd_read(fd_, &count);
    items_.swap(items);
  }

  bool empty() const {
    std::lock_guard lock(mutex_);
    return items_.empty();
  }

 private:
  const int fd_;
  mutable std::mutex mutex_;
  std::vector<T> items_;
};

}  // namespace rtp_llm
