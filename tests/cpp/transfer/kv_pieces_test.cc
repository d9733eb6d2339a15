#include "transfer/kv_pieces.h"

#include <numeric>

#include "check.h"
#include "device/checksum.h"
#include "pool_only.h"
#include "station.h"
#include "transfer/event_queue.h"
#include "transfer/wakeup.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

namespace {

// 3 layers, 2 heads of 4 bf16, 4 tokens a block: a head slice is 32 bytes, a plane 64, a layer 128, a block 384.
const KvLayout kLayout = KvLayout::transformer(3, 2, 4, DType::kBF16, 4);
uint8_t* const kBase = reinterpret_cast<uint8_t*>(1 << 20);

using Runs = std::vector<std::pair<int64_t, uint64_t>>;  // offset in the pool, bytes

Runs runs_of(const KvSpan& span) {
  Runs runs;
  for (const Piece& piece : kv_pieces(kLayout.groups[0], kBase, span))
    runs.emplace_back(static_cast<uint8_t*>(piece.data) - kBase, piece.bytes);
  return runs;
}

}  // namespace

TEST(a_whole_block_is_one_piece_over_its_run_of_layers) {
  const std::vector<int32_t> blocks = {5, 2};
  const Runs runs = runs_of({.first_layer = 1, .num_layers = 2, .first_token = 0, .tokens = 8, .blocks = blocks});
  CHECK_EQ(runs, (Runs{{5 * 384 + 128, 256}, {2 * 384 + 128, 256}}));
}

TEST(a_last_block_that_is_not_full_is_a_piece_per_layer_plane_and_head_of_its_tokens_alone) {
  const std::vector<int32_t> blocks = {1, 0};
  const Runs runs = runs_of({.first_layer = 2, .num_layers = 1, .first_token = 4, .tokens = 7, .blocks = blocks});
  CHECK_EQ(runs, (Runs{{1 * 384 + 256, 128}, {256, 24}, {256 + 32, 24}, {256 + 64, 24}, {256 + 96, 24}}));
}

TEST(pieces_hold_exactly_the_bytes_of_their_tokens) {
  const std::vector<int32_t> blocks = {3, 7, 1};
  const int64_t token_layer_bytes = kv_token_layer_bytes(kLayout.groups[0]);
  CHECK_EQ(token_layer_bytes, 32);
  for (int tokens = 1; tokens <= 12; ++tokens) {
    uint64_t bytes = 0;
    for (const auto& [offset, length] :
         runs_of({.first_layer = 0, .num_layers = 3, .first_token = 0, .tokens = tokens, .blocks = blocks}))
      bytes += length;
    CHECK_EQ(bytes, 3 * token_layer_bytes * tokens);
  }
}

TEST(a_span_longer_than_its_blocks_is_an_error_with_both_numbers) {
  const std::vector<int32_t> blocks = {0};
  CHECK_THROWS_WITH(runs_of({.first_layer = 0, .num_layers = 1, .first_token = 0, .tokens = 9, .blocks = blocks}),
                    InvalidArgument, "9 tokens has blocks for 4 only");
  CHECK_THROWS_WITH(runs_of({.first_layer = 0, .num_layers = 1, .first_token = 0, .tokens = 5, .blocks = blocks}),
                    InvalidArgument, "5 tokens has blocks for 4 only");
}

TEST(the_checksum_is_of_each_vector_at_its_layer_and_its_position_in_the_sequence) {
  std::vector<uint8_t> memory(8 * 384);
  for (size_t i = 0; i < memory.size(); ++i) memory[i] = pattern(1, i);
  const std::vector<int32_t> blocks = {5, 2};
  const KvSpan span{.first_layer = 1, .num_layers = 2, .first_token = 8, .tokens = 7, .blocks = blocks};
  const auto sum = [&](const KvSpan& of, int group = 3) {
    return kv_checksum(cpu().ops(), kLayout.groups[0], group, memory.data(), 8, of);
  };
  uint64_t expected = 0;
  for (int layer : {1, 2})
    for (int plane : {0, 1})
      for (int head : {0, 1})
        for (int token = 0; token < 7; ++token) {
          const uint8_t* vector =
              memory.data() + blocks[token / 4] * 384 + layer * 128 + plane * 64 + head * 32 + token % 4 * 8;
          expected += checksum_of_vector(
              vector, 8,
              pack_checksum_key({.group = 3, .layer = layer, .plane = plane, .head = head, .position = 8 + token}));
        }
  CHECK_EQ(sum(span), expected);
  const auto but = [&](auto change) {
    KvSpan other = span;
    change(other);
    return sum(other);
  };
  const std::vector<int32_t> swapped = {2, 5};
  CHECK(but([](KvSpan& s) { s.first_token = 0; }) != expected);
  CHECK(but([](KvSpan& s) { s.first_layer = 0; }) != expected);
  CHECK(but([](KvSpan& s) { s.tokens = 6; }) != expected);
  CHECK(but([&](KvSpan& s) { s.blocks = swapped; }) != expected);
  CHECK(sum(span, 0) != expected);
  // Two messages of four and three tokens are one of seven, whatever their order.
  const KvSpan first{
      .first_layer = 1, .num_layers = 2, .first_token = 8, .tokens = 4, .blocks = std::span(blocks).first(1)};
  const KvSpan last{
      .first_layer = 1, .num_layers = 2, .first_token = 12, .tokens = 3, .blocks = std::span(blocks).subspan(1)};
  CHECK_EQ(sum(last) + sum(first), expected);
}

TEST(an_event_queue_keeps_the_order_and_wakes_its_reader) {
  EventQueue<int> queue;
  Wakeup wakeup({queue.fd()});
  queue.push(1);
  queue.push(2);
  wakeup.wait(std::nullopt);
  CHECK_EQ(queue.take(), (std::vector{1, 2}));
  CHECK(queue.take().empty());
  wakeup.wait(0.0);  // a deadline that is over
}
