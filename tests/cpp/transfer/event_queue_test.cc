#include "transfer/event_queue.h"

#include "check.h"

namespace rtp_llm {
namespace {

TEST(items_come_out_in_the_order_in_which_they_went_in) {
  EventQueue<int> queue;
  for (int i = 0; i < 3; ++i) queue.push(i);
  CHECK(queue.take() == std::vector<int>({0, 1, 2}));
  CHECK(queue.take().empty());
}

TEST(a_taker_that_brings_its_buffer_makes_pushes_free_of_allocation) {
  EventQueue<int> queue;
  std::vector<int> taken;
  const int* buffers[2] = {};
  for (int round = 0; round < 20; ++round) {
    for (int i = 0; i < 64; ++i) queue.push(i);
    queue.take(taken);
    CHECK_EQ(taken.size(), 64u);
    if (round >= 2) CHECK(taken.data() == buffers[round % 2]);  // two buffers in turn
    buffers[round % 2] = taken.data();
  }
  queue.take(taken);
  CHECK(taken.empty());
}

}  // namespace
}  // namespace rtp_llm
