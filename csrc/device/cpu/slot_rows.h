// Which sequence and position each row of a step has.
#pragma once

#include <span>

#include "device/step_rows.h"
#include "tensor/check.h"

namespace rtp_llm::cpu {

// Throws InvalidArgument if the step or its slots are missing.
inline const Slots& slots_of(const char* op, const StepRows* step) {
  check(step != nullptr && step->slots != nullptr, op, ": step or slots missing");
  return *step->slots;
}

// Calls visit(row, slot, position) for each row of the segments, which are some of the step's. Throws InvalidArgument
// for a slot or a row out of range.
template <class Visit>
void for_each_row(const char* op, const StepRows* step, std::span<const Segment> segments, int64_t num_rows,
                  Visit visit) {
  const Slots& slots = slots_of(op, step);
  const int64_t num_slots = slots.seq_len.shape[0];
  for (const Segment& segment : segments) {
    check(segment.slot >= 0 && segment.slot < num_slots, op, ": slot ", segment.slot, " out of range, there are ",
          num_slots);
    check(segment.rows >= 0 && segment.first_row >= 0 && segment.first_row + int64_t{segment.rows} <= num_rows, op,
          ": rows [", segment.first_row, ", ", segment.first_row + int64_t{segment.rows}, ") of slot ", segment.slot,
          " out of range, there are ", num_rows);
    const int64_t first_position = slots.seq_len.as<int32_t>()[segment.slot];
    for (int32_t i = 0; i < segment.rows; ++i) visit(int64_t{segment.first_row} + i, segment.slot, first_position + i);
  }
}

// The same for all rows of the step.
template <class Visit>
void for_each_row(const char* op, const StepRows* step, int64_t num_rows, Visit visit) {
  slots_of(op, step);
  for_each_row(op, step, step->segments, num_rows, visit);
}

// Block of a position. Throws InvalidArgument if the table or the pool has no such block.
inline int32_t block_of(const char* op, const Slots& slots, int32_t slot, int64_t position, int block_tokens,
                        int64_t num_blocks) {
  const int64_t index = position / block_tokens;
  check(position >= 0 && index < slots.block_tables.shape[1], op, ": position ", position, " of slot ", slot,
        " is beyond its block table of ", slots.block_tables.shape[1], " blocks of ", block_tokens);
  const int32_t block = slots.block_tables.as<int32_t>()[slot * slots.block_tables.stride[0] + index];
  check(block >= 0 && block < num_blocks, op, ": block ", block, " out of range, pool has ", num_blocks);
  return block;
}

}  // namespace rtp_llm::cpu
