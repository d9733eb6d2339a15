#include "device/checksum.h"

#include "device_fixture.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

namespace {

// A pool whose vectors are functions of (plane, head, position) alone, whatever the block size.
PagedSequences filled(int block_tokens, int head_dim, DType dtype, int positions) {
  PagedSequences sequences(1, positions, block_tokens, 3, head_dim, dtype);
  for (int plane : {0, 1})
    for (int head = 0; head < 3; ++head)
      for (int position = 0; position < positions; ++position) {
        std::mt19937 random(static_cast<uint32_t>(plane * 1000003 + head * 1009 + position));
        uint8_t* vector = sequences.vector_at(0, plane, head, position);
        for (int64_t i = 0; i < sequences.kv.token_stride; ++i) vector[i] = static_cast<uint8_t>(random());
      }
  return sequences;
}

uint64_t checksum_of_all(Ops& ops, PagedSequences& sequences, int positions, bool backwards = false) {
  const int block_tokens = sequences.kv.block_tokens;
  const int blocks = (positions + block_tokens - 1) / block_tokens;
  uint64_t total = 0;
  for (int i = 0; i < blocks; ++i) {
    const int at = backwards ? blocks - 1 - i : i;
    total += ops.checksum({.kv = sequences.kv,
                           .group = 1,
                           .layer = 3,
                           .block = sequences.tables.as<int32_t>()[at],
                           .first_position = int64_t{at} * block_tokens,
                           .tokens = std::min(block_tokens, positions - at * block_tokens)});
  }
  return total;
}

}  // namespace

TEST(the_checksum_of_a_small_vector_is_what_the_formula_says) {
  const uint32_t words[] = {1, 2, 0xffffffffu, 4};
  const uint64_t h = uint64_t{1 + kChecksumTable[0]} * uint64_t{2 + kChecksumTable[1]} +
                     uint64_t{0xffffffffu + kChecksumTable[2]} * uint64_t{4 + kChecksumTable[3]};
  const uint64_t key = pack_checksum_key({.group = 1, .layer = 2, .plane = 1, .head = 5, .position = 77});
  CHECK_EQ(key, 1ull << 56 | 2ull << 46 | 1ull << 42 | 5ull << 32 | 77);
  CHECK_EQ(checksum_of_vector(words, sizeof(words), key), mix64(h + key));
  CHECK_EQ(kChecksumTable[0], 0x6627e8d5u);
  CHECK_EQ(mix64(0x9E3779B97F4A7C15ull), 0xE220A8397B1DCDAFull);  // SplitMix64's first output, seed 0
}

TEST(the_fast_checksum_is_the_reference) {
  on_each_isa([](const std::string& isa) {
    for (auto [dim, dtype] :
         {std::pair{64, DType::kBF16}, {128, DType::kF32}, {32, DType::kBF16}, {20, DType::kF32}, {3, DType::kBF16}}) {
      PagedSequences sequences = filled(16, dim, dtype, 50);
      uint64_t expected = 0;
      for (int plane : {0, 1})
        for (int head = 0; head < 3; ++head)
          for (int position = 0; position < 50; ++position)
            expected += checksum_of_vector(
                sequences.vector_at(0, plane, head, position), dim * size_of(dtype),
                pack_checksum_key({.group = 1, .layer = 3, .plane = plane, .head = head, .position = position}));
      CHECK_EQ(checksum_of_all(device_of(isa).ops(), sequences, 50), expected);
    }
  });
}

TEST(the_checksum_is_independent_of_block_size_and_order) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    PagedSequences small = filled(8, 64, DType::kBF16, 100), large = filled(64, 64, DType::kBF16, 100);
    const uint64_t expected = checksum_of_all(ops, small, 100);
    CHECK_EQ(checksum_of_all(ops, large, 100), expected);
    CHECK_EQ(checksum_of_all(ops, large, 100, true), expected);
    const ChecksumArgs part{.kv = large.kv, .block = 0, .first_position = 5, .first_token = 5, .tokens = 20};
    ChecksumArgs left = part, right = part;
    left.tokens = 7;
    right.first_position += 7, right.first_token += 7, right.tokens = 13;
    CHECK_EQ(ops.checksum(left) + ops.checksum(right), ops.checksum(part));
  });
}

TEST(the_checksum_sees_flipped_bits_and_swapped_positions_heads_planes_and_layers) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    PagedSequences sequences = filled(16, 64, DType::kBF16, 48);
    const uint64_t expected = checksum_of_all(ops, sequences, 48);
    const auto differs_after_swap = [&](uint8_t* a, uint8_t* b, int64_t bytes) {
      std::swap_ranges(a, a + bytes, b);
      const bool differs = checksum_of_all(ops, sequences, 48) != expected;
      std::swap_ranges(a, a + bytes, b);
      return differs;
    };
    const int64_t bytes = sequences.kv.token_stride;
    uint8_t* here = sequences.vector_at(0, 0, 1, 5);
    CHECK(differs_after_swap(here, sequences.vector_at(0, 0, 1, 6), bytes));
    CHECK(differs_after_swap(here, sequences.vector_at(0, 0, 2, 5), bytes));
    CHECK(differs_after_swap(here, sequences.vector_at(0, 1, 1, 5), bytes));
    CHECK(differs_after_swap(sequences.kv.base, sequences.kv.base + sequences.kv.block_stride,
                             sequences.kv.block_stride));
    CHECK(differs_after_swap(here, here + 4, 4));  // words of a pair, unless equal
    CHECK(differs_after_swap(here, here + 8, 8));  // pairs
    for (int bit = 0; bit < 8 * bytes; bit += 37) {
      here[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
      CHECK(checksum_of_all(ops, sequences, 48) != expected);
      here[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    }
    ChecksumArgs args{.kv = sequences.kv, .layer = 3, .block = 0, .tokens = 16};
    const uint64_t at_three = ops.checksum(args);
    args.layer = 4;
    CHECK(ops.checksum(args) != at_three);
    args.tokens = 17;
    CHECK_THROWS_WITH(ops.checksum(args), InvalidArgument, "tokens [0, 17)");
  });
}
