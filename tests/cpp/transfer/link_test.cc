#include "transfer/link.h"

#include <array>

#include "check.h"

using namespace rtp_llm;

namespace {

std::array<char, 64> memory;

std::vector<std::pair<int64_t, size_t>> runs_of(const std::vector<Piece>& pieces) {
  std::vector<std::pair<int64_t, size_t>> runs;
  for (const ucp_dt_iov_t& run : to_iov(pieces))
    runs.emplace_back(static_cast<char*>(run.buffer) - memory.data(), run.length);
  return runs;
}

}  // namespace

TEST(a_link_is_gone_when_it_was_closed_and_nothing_is_outstanding_on_it) {
  Link link(Direction::kReceive, {"there", 2});
  CHECK(!link.gone());
  link.closing = true;
  CHECK(link.gone());
  link.receives = 1;  // its callback has not fired: bytes may still land
  CHECK(!link.gone());
  link.receives = 0;
  link.sends = 1;
  CHECK(!link.gone());
}

TEST(neighbours_become_one_run_and_gaps_do_not) {
  const auto piece = [](int offset, uint64_t bytes) { return Piece{memory.data() + offset, bytes}; };
  CHECK_EQ(runs_of({piece(0, 4), piece(4, 8), piece(12, 1)}), (std::vector<std::pair<int64_t, size_t>>{{0, 13}}));
  CHECK_EQ(runs_of({piece(0, 4), piece(5, 3), piece(4, 1)}),
           (std::vector<std::pair<int64_t, size_t>>{{0, 4}, {5, 3}, {4, 1}}));
  CHECK_EQ(total_bytes({piece(0, 4), piece(5, 3)}), 7);
  CHECK_EQ(total_bytes({}), 0);
}

TEST(one_run_is_a_buffer_of_bytes_and_several_are_a_list) {
  const std::vector<ucp_dt_iov_t> list = {{memory.data(), 4}, {memory.data() + 8, 2}};
  ucp_request_param_t params{};
  size_t count = 0;
  CHECK(describe(list, params, count) == list.data());
  CHECK_EQ(count, 2);
  CHECK(params.datatype == UCP_DATATYPE_IOV);
  CHECK((params.op_attr_mask & UCP_OP_ATTR_FIELD_DATATYPE) != 0);
  const std::vector<ucp_dt_iov_t> one = {{memory.data() + 3, 9}};
  CHECK(describe(one, params, count) == memory.data() + 3);
  CHECK_EQ(count, 9);
  CHECK(params.datatype == ucp_dt_make_contig(1));
}
