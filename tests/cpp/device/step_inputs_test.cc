// StepInputs: what the host says to a step, and what of it the device reads.
#include "device/step_inputs.h"

#include "device/token_rules.h"
#include "device_fixture.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

namespace {

constexpr int kSlots = 3, kPadding = 2;  // the last slot is the padding rows'

template <class T>
std::vector<T> copy_of(const T* at, int64_t count) {
  return {at, at + count};
}

std::vector<int32_t> values_of(const Tensor& x) { return copy_of(x.as<const int32_t>(), x.numel()); }

}  // namespace

TEST(a_steps_rows_know_slot_offset_form_and_the_highest_position) {
  Device& device = device_of("generic");
  PagedSequences sequences(kSlots, 64, 16, 1, 16, DType::kF32);
  StepInputs inputs(device, {.rows = 8, .segments = 3, .block_ids = 4}, sequences.slots);
  for (int round = 0; round < 2; ++round) {  // the second time nothing of the first is left
    inputs.clear();
    if (round == 0) inputs.add(0, std::vector<int32_t>{9, 9, 9, 9, 9, 9, 9, 9}, Form::kPrefill, 0);
    if (round == 0) continue;
    inputs.add(1, std::vector<int32_t>{kTokenFromSlot}, Form::kDecode, 41);
    inputs.sample();
    inputs.add(0, std::vector<int32_t>{5, 6, 7}, Form::kPrefill, 10);
    inputs.sample();
  }
  inputs.upload();
  const StepRows& rows = inputs.rows();
  CHECK_EQ(rows.num_rows, 4);
  CHECK_EQ(rows.max_position, 41);
  CHECK_EQ(values_of(inputs.tokens()), std::vector<int32_t>({kTokenFromSlot, 5, 6, 7}));
  CHECK_EQ(values_of(inputs.logit_rows()), std::vector<int32_t>({0, 3}));
  // Behind the step's rows the tables go on with padding rows.
  CHECK_EQ(copy_of(rows.row_slot.as<const int32_t>(), 8),
           std::vector<int32_t>({1, 0, 0, 0, kPadding, kPadding, kPadding, kPadding}));
  CHECK_EQ(copy_of(rows.row_offset.as<const int32_t>(), 8), std::vector<int32_t>({0, 0, 1, 2, 0, 0, 0, 0}));
  REQUIRE(rows.segments.size() == 2 && rows.prefills.size() == 1 && rows.decodes.size() == 1);
  CHECK_EQ(rows.segments[1].first_row, 1);
  CHECK_EQ(rows.prefills[0].slot, 0);
  CHECK_EQ(rows.decodes[0].slot, 1);
  CHECK_EQ(rows.sample_rows[1].slot, 0);
  CHECK_EQ(rows.sample_rows[1].row, 1);
  // The device has the same.
  CHECK_EQ(rows.device_counts->rows, 4);
  CHECK_EQ(rows.device_counts->segments, 2);
  CHECK_EQ(rows.device_counts->prefills, 1);
  CHECK_EQ(rows.device_counts->decodes, 1);
  CHECK_EQ(rows.device_counts->samples, 2);
  CHECK_EQ(rows.device_segments[1].rows, 3);
  CHECK_EQ(rows.device_prefills[0].first_row, 1);
  CHECK_EQ(rows.device_decodes[0].slot, 1);
  CHECK_EQ(rows.device_sample_rows[1].slot, 0);
}

TEST(updates_bind_a_slot_or_let_its_table_grow_and_fresh_blocks_are_zeroed) {
  on_each_isa([](const std::string& isa) {
    Device& device = device_of(isa);
    PagedSequences sequences(kSlots, 64, 16, 1, 16, DType::kF32);
    const std::vector<int32_t> tables = values_of(sequences.tables);  // 4 blocks a slot
    sequences.seq_len.as<int32_t>()[1] = 17;
    std::fill(sequences.pool.begin(), sequences.pool.end(), uint8_t{1});
    StepInputs inputs(device, {.rows = 8, .segments = 2, .block_ids = 4}, sequences.slots);
    SlotUpdate& bound = inputs.update(0);
    bound.binds = 1;
    bound.last_token = 7;
    bound.seq_len = 3;
    bound.output_position = 2;
    bound.sampling.seed = 99;
    inputs.add_block(11);
    inputs.update(1).first_block = 3;
    inputs.add_block(10);
    inputs.fresh(2);
    inputs.fresh(0);
    CHECK_THROWS_WITH(inputs.update(2), InvalidArgument, "more than 2 slots");
    CHECK_THROWS_WITH(inputs.fresh(1), InvalidArgument, "more than 4 block ids");
    inputs.upload();
    inputs.apply(sequences.kv.base, sequences.kv.block_stride);
    CHECK_EQ(values_of(sequences.last_token), std::vector<int32_t>({7, 0, 0}));
    CHECK_EQ(values_of(sequences.seq_len), std::vector<int32_t>({3, 17, 0}));
    CHECK_EQ(values_of(sequences.output_position), std::vector<int32_t>({2, 0, 0}));
    CHECK_EQ(sequences.sampling[0].seed, 99);
    std::vector<int32_t> expected = tables;
    expected[0] = 11, expected[4 + 3] = 10;
    CHECK_EQ(values_of(sequences.tables), expected);
    for (int block = 0; block < sequences.kv.num_blocks; ++block)
      for (int64_t i = 0; i < sequences.kv.block_stride; ++i)
        CHECK_EQ(sequences.pool[block * sequences.kv.block_stride + i], block == 0 || block == 2 ? 0 : 1);
  });
}

TEST(slots_are_written_within_their_tables_only) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    PagedSequences sequences(kSlots, 64, 16, 1, 16, DType::kF32);
    const auto run = [&](SlotUpdate update) {
      const int32_t blocks[] = {1, 2};
      ops.update_slots({.slots = &sequences.slots, .updates = std::span(&update, 1), .blocks = blocks});
    };
    CHECK_THROWS_WITH(run({.slot = 3}), InvalidArgument, "slot 3 out of range, there are 3");
    CHECK_THROWS_WITH(run({.first_block = 3, .num_blocks = 2}), InvalidArgument,
                      "blocks [3, 5) of slot 0 are beyond its block table of 4");
    CHECK_THROWS_WITH(run({.num_blocks = 2, .first_id = 1}), InvalidArgument, "ids from 1 on, 2 of them, there are 2");
  });
}

TEST(a_step_larger_than_its_limits_is_refused) {
  Device& device = device_of("generic");
  PagedSequences sequences(kSlots, 64, 16, 1, 16, DType::kF32);
  StepInputs inputs(device, {.rows = 2, .segments = 1, .block_ids = 1}, sequences.slots);
  CHECK_THROWS_WITH(inputs.sample(), InvalidArgument, "a step of 0 rows");
  CHECK_THROWS_WITH(inputs.add(0, std::vector<int32_t>{1, 2, 3}, Form::kPrefill, 0), InvalidArgument,
                    "a step of 3 rows, at most 2");
  inputs.add(0, std::vector<int32_t>{1}, Form::kPrefill, 0);
  CHECK_THROWS_WITH(inputs.add(1, std::vector<int32_t>{1}, Form::kPrefill, 0), InvalidArgument, "more than 1 segments");
  inputs.fresh(0);
  CHECK_THROWS_WITH(inputs.update(0), InvalidArgument, "written after the fresh blocks");
}

TEST(events_of_a_synchronous_device_are_done_and_have_times) {
  Device& device = device_of("generic");
  CHECK(!device.runs_behind());
  const StreamEvent begin = device.record(), end = device.record();
  CHECK(device.done(begin) && device.done(end) && device.done({}));
  CHECK(end.number == begin.number + 1);
  CHECK(device.seconds_between(begin, end) >= 0);
  for (int i = 0; i < Device::kTimedEvents; ++i) device.record();
  CHECK_THROWS_WITH(device.seconds_between(begin, end), InvalidArgument, "has no time");
}

TEST(words_about_tokens_reach_the_slot_that_they_are_said_of) {
  on_each_isa([](const std::string& isa) {
    Device& device = device_of(isa);
    PagedSequences sequences(kSlots, 64, 16, 1, 16, DType::kF32);
    const Owned words(DType::kI32, {kSlots, 10});
    std::vector<TokenBias> biases(kSlots * kMaxTokenBiases);
    sequences.slots.token_words = words;
    sequences.slots.biases = biases.data();
    StepInputs inputs(device, {.rows = 8, .segments = 2, .block_ids = 4, .words = 5}, sequences.slots);
    for (int round = 0; round < 2; ++round) {  // the second time nothing of the first is left
      inputs.clear();
      SlotUpdate& first = inputs.update(0);
      first.binds = first.sampling.has_token_words = 1;
      first.num_prompt = 2;
      inputs.add_words(std::vector<int32_t>{3});
      inputs.add_words(std::vector<int32_t>{4 + round});
      inputs.add_block(1);
      SlotUpdate& second = inputs.update(1);
      second.binds = second.sampling.has_token_words = 1;
      second.num_output = 3;
      inputs.add_words(std::vector<int32_t>{9, 9, 3});
      CHECK_THROWS_WITH(inputs.add_words(std::vector<int32_t>{1}), InvalidArgument, "more than 5 words");
      inputs.upload();
      inputs.apply(sequences.kv.base, sequences.kv.block_stride);
    }
    std::vector<int32_t> expected(kSlots * 10);
    expected[3] = expected[5] = static_cast<int32_t>(kTokenInPrompt);
    expected[10 + 9] = 2, expected[10 + 3] = 1;
    CHECK_EQ(values_of(words), expected);
  });
}
