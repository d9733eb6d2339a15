#include "engine/output_queue.h"

#include "check.h"

namespace rtp_llm {
namespace {

void add_row(TokenColumns& columns, int32_t token, int num_top) {
  columns.key.push_back({.router_epoch = 7, .request = 1});
  columns.position.push_back(0);
  columns.token.push_back(token);
  columns.logprob.push_back(-1);
  columns.finish.push_back(FinishReason::kNone);
  columns.num_cached_tokens.push_back(0);
  columns.times.push_back({.queued = 1.0f * token});
  columns.num_top_logprobs.push_back(num_top);
  for (int i = 0; i < num_top; ++i) columns.top_logprobs.emplace_back(token + i, -1.0f);
}

TEST(steps_that_nobody_took_come_out_as_one_in_order) {
  OutputQueue queue;
  TokenColumns columns;
  for (int step = 0; step < 3; ++step) {
    add_row(columns, step, step);
    queue.publish(columns);
    CHECK(columns.key.empty());
  }
  const TokenColumns taken = queue.take();
  CHECK(taken.token == std::vector<int32_t>({0, 1, 2}));
  CHECK(taken.num_top_logprobs == std::vector<int32_t>({0, 1, 2}));
  CHECK((taken.times == std::vector<FirstTimes>{{.queued = 0}, {.queued = 1}, {.queued = 2}}));
  CHECK_EQ(taken.top_logprobs.size(), 3u);
  CHECK(queue.take().key.empty());
}

TEST(a_notice_without_a_row_is_told_and_comes_out_once) {
  OutputQueue queue;
  int told = 0;
  queue.set_notify([&] { ++told; });
  TokenColumns columns;
  columns.started.push_back({.router_epoch = 7, .request = 1});
  queue.publish(columns);
  CHECK_EQ(told, 1);
  CHECK(columns.empty());
  CHECK_EQ(queue.take().started.size(), 1u);
  CHECK(queue.take().empty());
}

TEST(publishing_allocates_nothing_once_the_buffers_have_grown) {
  OutputQueue queue;
  TokenColumns columns;
  for (int row = 0; row < 8; ++row) add_row(columns, row, 2);
  queue.publish(columns);
  const size_t rows = queue.take().key.capacity();
  const RequestKey* own = columns.key.data();
  for (int step = 0; step < 10; ++step) {
    for (int row = 0; row < 8; ++row) add_row(columns, row, 2);
    CHECK(columns.key.data() == own);  // the step's own columns stay where they are
    queue.publish(columns);
    const TokenColumns taken = queue.take();
    CHECK_EQ(taken.key.capacity(), rows);  // as the taker left it: publish() never grew it
    CHECK(taken.top_logprobs.capacity() >= 16);
  }
}

}  // namespace
}  // namespace rtp_llm
