#include "device/step_inputs.h"

#include <algorithm>

namespace rtp_llm {

namespace {

constexpr int64_t kAlignment = 64;

constexpr int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t bytes_of(const StepLimits& limits) {
  const auto segments = static_cast<int64_t>(sizeof(Segment)) * limits.segments;
  return aligned(sizeof(StepCounts)) + 3 * aligned(segments) +
         aligned(static_cast<int64_t>(sizeof(SampleRow)) * limits.segments) + aligned(4 * limits.segments) +
         3 * aligned(4 * limits.rows) + aligned(static_cast<int64_t>(sizeof(SlotUpdate)) * limits.segments) +
         aligned(4 * limits.block_ids) + aligned(4 * limits.words);
}

}  // namespace

template <class T>
StepInputs::Both<T> StepInputs::carve(int64_t count) {
  const Both<T> both{.host = reinterpret_cast<T*>(static_cast<uint8_t*>(pinned_.data()) + carved_),
                     .device = reinterpret_cast<T*>(static_cast<uint8_t*>(buffer_.data()) + carved_)};
  carved_ += aligned(static_cast<int64_t>(sizeof(T)) * count);
  return both;
}

StepInputs::StepInputs(Device& device, const StepLimits& limits, const Slots& slots)
    : device_(device),
      slots_(slots),
      limits_(limits),
      pinned_(device.allocate_pinned(bytes_of(limits), "step_inputs.pinned")),
      buffer_(device.allocate(bytes_of(limits), "step_inputs")) {
  counts_ = carve<StepCounts>(1);
  segments_ = carve<Segment>(limits.segments);
  prefills_ = carve<Segment>(limits.segments);
  decodes_ = carve<Segment>(limits.segments);
  sample_rows_ = carve<SampleRow>(limits.segments);
  logit_rows_ = carve<int32_t>(limits.segments);
  tokens_ = carve<int32_t>(limits.rows);
  row_slot_ = carve<int32_t>(limits.rows);
  row_offset_ = carve<int32_t>(limits.rows);
  updates_ = carve<SlotUpdate>(limits.segments);
  ids_ = carve<int32_t>(limits.block_ids);
  words_ = carve<int32_t>(limits.words);
  for (int32_t i = 0; i < limits.segments; ++i) {
    padding_segments_.push_back({.slot = slots.padding_slot(), .first_row = i, .rows = 1, .form = Form::kDecode});
    padding_samples_.push_back({.slot = slots.padding_slot(), .row = i});
  }
  rows_.slots = &slots_;
  rows_.device_segments = segments_.device;
  rows_.device_prefills = prefills_.device;
  rows_.device_decodes = decodes_.device;
  rows_.device_sample_rows = sample_rows_.device;
  rows_.device_counts = counts_.device;
  num_written_rows_ = limits.rows;
  clear();
}

void StepInputs::clear() {
  // Behind the next step's rows lie padding rows.
  std::fill_n(row_slot_.host, num_written_rows_, slots_.padding_slot());
  std::fill_n(row_offset_.host, num_written_rows_, 0);
  std::fill_n(tokens_.host, num_written_rows_, 0);
  num_written_rows_ = num_updates_ = num_ids_ = num_update_ids_ = num_words_ = 0;
  *counts_.host = {};
  rows_.num_rows = rows_.max_position = 0;
  rows_.segments = rows_.prefills = rows_.decodes = {};
  rows_.sample_rows = {};
}

void StepInputs::add(int32_t slot, std::span<const int32_t> tokens, Form form, int64_t first_position) {
  const auto count = static_cast<int64_t>(tokens.size());
  const int64_t first = rows_.num_rows;
  check(count > 0 && first + count <= limits_.rows, "a step of ", first + count, " rows, at most ", limits_.rows);
  check(counts_.host->segments < limits_.segments, "a step of more than ", limits_.segments, " segments");
  std::copy(tokens.begin(), tokens.end(), tokens_.host + first);
  for (int64_t i = 0; i < count; ++i) {
    row_slot_.host[first + i] = slot;
    row_offset_.host[first + i] = static_cast<int32_t>(i);
  }
  rows_.num_rows = num_written_rows_ = first + count;
  rows_.max_position = std::max(rows_.max_position, first_position + count - 1);
  add_segment(
      {.slot = slot, .first_row = static_cast<int32_t>(first), .rows = static_cast<int32_t>(count), .form = form});
}

void StepInputs::add_segment(const Segment& segment) {
  StepCounts& counts = *counts_.host;
  segments_.host[counts.segments++] = segment;
  if (segment.form == Form::kPrefill)
    prefills_.host[counts.prefills++] = segment;
  else
    decodes_.host[counts.decodes++] = segment;
  counts.rows = static_cast<int32_t>(rows_.num_rows);
  rows_.segments = segments_.first(counts.segments);
  rows_.prefills = prefills_.first(counts.prefills);
  rows_.decodes = decodes_.first(counts.decodes);
}

void StepInputs::sample() {
  StepCounts& counts = *counts_.host;
  check(rows_.num_rows > 0 && counts.samples < limits_.segments, "sample ", counts.samples, " of a step of ",
        rows_.num_rows, " rows, at most ", limits_.segments);
  sample_rows_.host[counts.samples] = {.slot = rows_.segments.back().slot, .row = counts.samples};
  logit_rows_.host[counts.samples] = static_cast<int32_t>(rows_.num_rows) - 1;
  rows_.sample_rows = sample_rows_.first(++counts.samples);
}

const StepRows& StepInputs::padded(int64_t num_rows) {
  check(num_rows >= rows_.num_rows && num_rows <= limits_.segments && num_rows <= limits_.rows, "a step of ",
        rows_.num_rows, " rows can't be padded to ", num_rows, ", at most ", std::min(limits_.segments, limits_.rows));
  padded_ = rows_;
  padded_.num_rows = num_rows;
  padded_.segments = padded_.decodes = std::span<const Segment>(padding_segments_).first(num_rows);
  padded_.prefills = {};
  padded_.sample_rows = std::span<const SampleRow>(padding_samples_).first(num_rows);
  padded_.row_slot = row_slot_.device_rows(num_rows);
  padded_.row_offset = row_offset_.device_rows(num_rows);
  return padded_;
}

SlotUpdate& StepInputs::update(int32_t slot) {
  check(num_updates_ < limits_.segments, "more than ", limits_.segments, " slots to write in a step");
  check(num_fresh() == 0, "slot ", slot, " is written after the fresh blocks were named");
  SlotUpdate& update = updates_.host[num_updates_++];
  update = {.slot = slot, .first_id = static_cast<int32_t>(num_ids_), .first_word = static_cast<int32_t>(num_words_)};
  return update;
}

void StepInputs::add_block(int32_t block) {
  add_id(block);
  ++updates_.host[num_updates_ - 1].num_blocks;
  num_update_ids_ = num_ids_;
}

void StepInputs::add_words(std::span<const int32_t> words) {
  const auto count = static_cast<int64_t>(words.size());
  check(num_words_ + count <= limits_.words, "more than ", limits_.words, " words about tokens in a step");
  std::ranges::copy(words, words_.host + num_words_);
  num_words_ += count;
}

void StepInputs::fresh(int32_t block) { add_id(block); }

void StepInputs::add_id(int32_t block) {
  check(num_ids_ < limits_.block_ids, "more than ", limits_.block_ids, " block ids in a step");
  ids_.host[num_ids_++] = block;
}

// What is not used lies at the end: updates and ids.
void StepInputs::upload() {
  const auto* const begin = static_cast<const uint8_t*>(pinned_.data());
  const auto* end = reinterpret_cast<const uint8_t*>(updates_.host + num_updates_);
  if (num_ids_ > 0) end = reinterpret_cast<const uint8_t*>(ids_.host + num_ids_);
  device_.copy_ahead(buffer_.data(), begin, end - begin);
  if (num_words_ > 0) device_.copy_ahead(words_.device, words_.host, 4 * num_words_);
  rows_.row_slot = row_slot_.device_rows(num_rows());
  rows_.row_offset = row_offset_.device_rows(num_rows());
}

void StepInputs::apply(uint8_t* pool_base, int64_t block_bytes) {
  if (num_fresh() > 0)
    device_.ops().zero_blocks({.base = pool_base,
                               .block_bytes = block_bytes,
                               .blocks = ids_.first(num_ids_).subspan(static_cast<size_t>(num_update_ids_)),
                               .device_blocks = ids_.device + num_update_ids_});
  if (num_updates_ > 0)
    device_.ops().update_slots({.slots = &slots_,
                                .updates = updates_.first(num_updates_),
                                .blocks = ids_.first(num_update_ids_),
                                .words = words_.first(num_words_),
                                .device_updates = updates_.device,
                                .device_blocks = ids_.device,
                                .device_words = words_.device});
}

}  // namespace rtp_llm
