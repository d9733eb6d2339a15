#include "transfer/wakeup.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cmath>

#include "check.h"
#include "station.h"
#include "transfer/event_queue.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

TEST(a_wait_ends_at_its_deadline_and_not_before) {
  Wakeup wakeup({});
  for (const double wait_s : {0.002, 0.05, 0.3}) {
    const double deadline = now_s() + wait_s;
    wakeup.wait(deadline);
    CHECK(now_s() >= deadline);
  }
  // An earlier one replaces a later one; the fraction of a second rounds up to a whole one.
  const double almost = std::floor(now_s()) + 1 - 1e-10;
  wakeup.wait(almost);
  CHECK(now_s() >= almost - 1e-9);
}

TEST(a_deadline_that_is_over_ends_the_wait_at_once) {
  Wakeup wakeup({});
  for (const double over : {now_s() - 1, 0.0, -7.0}) wakeup.wait(over);
}

TEST(any_fd_that_is_readable_ends_the_wait) {
  EventQueue<int> first, second;
  Wakeup wakeup({first.fd(), second.fd()});
  for (EventQueue<int>* queue : {&first, &second}) {
    queue->push(1);
    wakeup.wait(std::nullopt);
    queue->take();
  }
  const double deadline = now_s() + 0.01;
  wakeup.wait(deadline);  // nothing is readable any more
  CHECK(now_s() >= deadline);
}

TEST(a_wakeup_leaves_no_fd_open) {
  const auto lowest_free = [] {
    const int fd = eventfd(0, EFD_CLOEXEC);
    close(fd);
    return fd;
  };
  const int before = lowest_free();
  {
    const Wakeup wakeup({});
    CHECK(lowest_free() > before);
  }
  CHECK_EQ(lowest_free(), before);
}

TEST(an_fd_that_is_none_is_named) { CHECK_THROWS_WITH(Wakeup({-1}), Unavailable, "epoll_ctl: Bad file descriptor"); }
