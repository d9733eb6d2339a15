#include "transfer/trace.h"

#include "check.h"

namespace rtp_llm {
namespace {

std::vector<int> first_tokens(const std::vector<TraceEntry>& entries) {
  std::vector<int> tokens;
  for (const TraceEntry& entry : entries) tokens.push_back(entry.first_token);
  return tokens;
}

TEST(the_latest_entries_are_kept_the_oldest_first) {
  const RequestKey even{.request = 1}, odd{.request = 2};
  Trace trace(4);
  CHECK(trace.entries({}).empty());
  for (int i = 0; i < 3; ++i) trace.add({.key = i % 2 ? odd : even, .first_token = i});
  CHECK_EQ(first_tokens(trace.entries({})), std::vector{0, 1, 2});
  for (int i = 3; i < 10; ++i) trace.add({.key = i % 2 ? odd : even, .first_token = i});
  CHECK_EQ(first_tokens(trace.entries({})), std::vector{6, 7, 8, 9});
  CHECK_EQ(first_tokens(trace.entries(odd)), std::vector{7, 9});
}

TEST(a_trace_of_no_entries_keeps_none) {
  Trace trace(0);
  trace.add({});
  trace.add({});
  CHECK(trace.entries({}).empty());
}

}  // namespace
}  // namespace rtp_llm
