#include "transfer/wakeup.h"

#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "tensor/check.h"

namespace rtp_llm {
namespace {

int opened(int fd, const char* what) {
  if (fd < 0) throw Unavailable(concat(what, ": ", std::strerror(errno)));
  return fd;
}

void watch(int epoll, int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  opened(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
}

}  // namespace

Wakeup::Wakeup(std::initializer_list<int> fds)
    : epoll_(opened(epoll_create1(EPOLL_CLOEXEC), "epoll_create1")),
      timer_(opened(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), "timerfd_create")) {
  watch(epoll_, timer_);
  for (int fd : fds) watch(epoll_, fd);
}

Wakeup::~Wakeup() {
  close(timer_);
  close(epoll_);
}

void Wakeup::wait(std::optional<Seconds> deadline) {
  itimerspec spec{};  // all zero: disarmed
  if (deadline) {
    const Seconds at = std::max(*deadline, 1e-9);
    spec.it_value.tv_sec = static_cast<time_t>(at);
    spec.it_value.tv_nsec = std::min(static_cast<long>(std::ceil((at - std::floor(at)) * 1e9)), 999'999'999L);
  }
  opened(timerfd_settime(timer_, TFD_TIMER_ABSTIME, &spec, nullptr), "timerfd_settime");
  epoll_event events[4];
  if (epoll_wait(epoll_, events, 4, -1) < 0 && errno != EINTR)
    throw Unavailable(concat("epoll_wait: ", std::strerror(errno)));
}

}  // namespace rtp_llm
