// StepRows: which sequence, position and form each row of one step has. Made once a step (device/step_inputs.h) and
// read by every op of it.
//
// Everything is here twice: as spans of host memory, with counts, for ops that run on the host and for launch shapes,
// and as arrays of device memory, uploaded with the step's other inputs by one copy. Both stay as they are until the
// step has ended. Device arrays lie at the same addresses in every step that one StepInputs makes, so that a captured
// graph can be replayed over them.
#pragma once

#include <cstdint>
#include <span>

#include "device/slots.h"
#include "tensor/tensor.h"

namespace rtp_llm {

// One row of logits to sample from, for the sequence of a slot.
struct SampleRow {
  int32_t slot = 0;
  int32_t row = 0;  // row of logits
};

// The counts of a step in device memory, for launches whose shape is larger than the step (a graph's bucket).
struct StepCounts {
  int32_t rows = 0;      // M
  int32_t segments = 0;  // = prefills + decodes
  int32_t prefills = 0;
  int32_t decodes = 0;
  int32_t samples = 0;  // R
};

struct StepRows {
  const Slots* slots = nullptr;
  int64_t num_rows = 0;      // M
  int64_t max_position = 0;  // no row of this step has a higher position; from 0

  // Host memory.
  std::span<const Segment> segments;       // cover the rows in order: each begins where the one before it ends
  std::span<const Segment> prefills;       // those of Form::kPrefill, in the same order
  std::span<const Segment> decodes;        // those of Form::kDecode; a replayed answer's has more than one row
  std::span<const SampleRow> sample_rows;  // [R], ascending by row

  // Device memory. The position of row i is slots->seq_len[row_slot[i]] + row_offset[i]. Behind row M both tables go
  // on, to the most rows that a step may have, with padding rows: row_slot is slots->padding_slot(), row_offset 0.
  Tensor row_slot;                           // [M] i32
  Tensor row_offset;                         // [M] i32: index of the row within its segment
  const Segment* device_segments = nullptr;  // behind the last one lie stale entries: device_counts has the number
  const Segment* device_prefills = nullptr;
  const Segment* device_decodes = nullptr;
  const SampleRow* device_sample_rows = nullptr;
  const StepCounts* device_counts = nullptr;
};

}  // namespace rtp_llm
