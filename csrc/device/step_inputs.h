// StepInputs: what the host says to one step, filled in pinned memory and uploaded by one copy: tokens, rows, segments,
// logit rows, writes into slots, blocks to zero. What updates say of tokens, where they do, is a second copy.
//
// Order of use: clear(); add() and sample() for each run of rows; update(), its block ids and words, all fresh() blocks
// after the last of them; upload(); then apply(), and ops over rows(). Nothing may be changed until the step has ended.
// Thread rule: the engine thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device/device.h"
#include "device/ops.h"
#include "device/step_rows.h"

namespace rtp_llm {

// The most of each that a step may have.
struct StepLimits {
  int64_t rows = 0;
  int64_t segments = 0;   // updates and samples, too: at most one a segment
  int64_t block_ids = 0;  // of updates and fresh blocks together
  int64_t words = 0;      // of what updates say of tokens
};

class StepInputs {
 public:
  // REQUIRES: device and slots outlive it.
  StepInputs(Device& device, const StepLimits& limits, const Slots& slots);
  StepInputs(const StepInputs&) = delete;
  StepInputs& operator=(const StepInputs&) = delete;

  void clear();
  // A run of rows of a slot's sequence, tokens [R] or kTokenFromSlot, from `first_position` on.
  void add(int32_t slot, std::span<const int32_t> tokens, Form form, int64_t first_position);
  // The last row added is sampled.
  void sample();

  // A write into a slot; its block ids follow by add_block().
  SlotUpdate& update(int32_t slot);
  void add_block(int32_t block);
  // What the last update says of tokens (SlotUpdate::first_word), piece by piece.
  void add_words(std::span<const int32_t> words);
  // REQUIRES: no update follows.
  void fresh(int32_t block);

  void upload();
  // Launches zeroing of fresh blocks (of a pool laid out from `pool_base`) and the writes into slots. REQUIRES:
  // upload().
  void apply(uint8_t* pool_base, int64_t block_bytes);

  const StepRows& rows() const { return rows_; }
  // The same step with padding rows up to `num_rows`: each a segment of its own in decode form, and sampled. For
  // launches whose shape is a bucket's, recorded once and replayed for every step of at most so many rows. Its host
  // spans say nothing of the step: ops that have it launch by counts and read device memory. REQUIRES: all rows are
  // decode rows, one a segment, and all are sampled; num_rows at most the limits'.
  const StepRows& padded(int64_t num_rows);
  Tensor padded_tokens(int64_t num_rows) const { return tokens_.device_rows(num_rows); }
  Tensor padded_logit_rows(int64_t num_rows) const { return logit_rows_.device_rows(num_rows); }
  int64_t num_rows() const { return rows_.num_rows; }
  int64_t num_samples() const { return static_cast<int64_t>(rows_.sample_rows.size()); }
  int64_t num_updates() const { return num_updates_; }
  int64_t num_fresh() const { return num_ids_ - num_update_ids_; }
  // Device memory, after upload().
  Tensor tokens() const { return tokens_.device_rows(num_rows()); }  // [M] i32
  Tensor logit_rows() const {
    return logit_rows_.device_rows(num_samples());
  }  // [R] i32: the row that each sample reads

 private:
  // An array in pinned memory and its copy on the device.
  template <class T>
  struct Both {
    T* host = nullptr;
    T* device = nullptr;
    Tensor device_rows(int64_t count) const { return make_tensor(device, DType::kI32, {count}); }
    std::span<const T> first(int64_t count) const { return {host, static_cast<size_t>(count)}; }
  };

  template <class T>
  Both<T> carve(int64_t count);
  void add_segment(const Segment& segment);
  void add_id(int32_t block);

  Device& device_;
  const Slots& slots_;
  const StepLimits limits_;
  Buffer pinned_, buffer_;
  int64_t carved_ = 0;  // bytes

  Both<StepCounts> counts_;
  Both<Segment> segments_, prefills_, decodes_;
  Both<SampleRow> sample_rows_;
  Both<int32_t> logit_rows_, tokens_, row_slot_, row_offset_;
  Both<SlotUpdate> updates_;
  Both<int32_t> ids_, words_;
  StepRows rows_, padded_;
  std::vector<Segment> padding_segments_;  // of the padding slot
  std::vector<SampleRow> padding_samples_;
  int64_t num_written_rows_ = 0;  // rows of the tables that hold no padding
  int64_t num_updates_ = 0, num_ids_ = 0, num_update_ids_ = 0, num_words_ = 0;
};

}  // namespace rtp_llm
