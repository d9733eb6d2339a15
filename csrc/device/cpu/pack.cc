// Packing: weights arrive in chunks of rows, as the file is streamed, and go to their panels at once.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "device/cpu/cpu_ops.h"
#include "device/cpu/panels.h"
#include "device/cpu/transpose.h"

namespace rtp_llm::cpu {
namespace {

uint32_t as_bits(float value) { return __builtin_bit_cast(uint32_t, value); }
uint16_t to_bf16_bits(float value) { return to_bf16(value).bits; }
uint16_t to_bf16_bits(BFloat16 value) { return value.bits; }
float to_float(float value) { return value; }
float to_float(BFloat16 value) { return to_f32(value); }

// Whether the rows are already the words of a panel's steps: f32, or whole pairs of bf16.
template <class In>
bool rows_are_words(DType dtype, const In* x, int64_t row_stride, int64_t features) {
  if constexpr (std::is_same_v<In, float>) return dtype == DType::kF32;
  return dtype == DType::kBF16 && features % 2 == 0 && row_stride % 2 == 0 &&
         reinterpret_cast<uintptr_t>(x) % sizeof(uint32_t) == 0;
}

// `count` rows of x go to lanes [lane, lane + count) of one panel.
template <class In>
void write_panel(DType dtype, const In* x, int64_t row_stride, int64_t features, int64_t lane, int64_t count,
                 uint32_t* panel) {
  const bool pairs = dtype == DType::kBF16;
  const int64_t steps = pairs ? (features + 1) / 2 : features;
  if (rows_are_words(dtype, x, row_stride, features))
    return transpose_words(reinterpret_cast<const uint32_t*>(x), row_stride / (pairs ? 2 : 1), count, steps,
                           panel + lane, kPanelWidth);
  for (int64_t i = 0; i < count; ++i, ++lane, x += row_stride)
    for (int64_t step = 0; step < steps; ++step) {
      uint32_t& word = panel[step * kPanelWidth + lane];
      if (!pairs) {
        word = as_bits(to_float(x[step]));
        continue;
      }
      const uint32_t low = to_bf16_bits(x[2 * step]);
      const uint32_t high = 2 * step + 1 < features ? to_bf16_bits(x[2 * step + 1]) : 0u;
      word = low | high << 16;
    }
}

class PanelPacker final : public LinearPacker {
 public:
  explicit PanelPacker(std::unique_ptr<PanelLinear> made) : PanelPacker(*made) { made_ = std::move(made); }
  explicit PanelPacker(PanelLinear& given)
      : packed_(&given),
        row_written_(static_cast<size_t>(this->spec().out_features())),
        bias_written_(this->spec().parts.size()) {
    int64_t first = 0;
    for (const LinearPart& part : this->spec().parts) {
      first_row_.push_back(first);
      first += part.rows;
    }
  }

  void write_rows(int part, int64_t first_row, const Tensor& rows) override;
  void write_bias(int part, const Tensor& bias) override;
  std::unique_ptr<PackedLinear> finish() override;

 private:
  const LinearSpec& spec() const { return packed_->spec(); }
  const LinearPart& part_at(int part) const {
    check(packed_ != nullptr, "weight already finished");
    check(part >= 0 && part < static_cast<int>(spec().parts.size()), "weight '", spec().name, "': part ", part,
          " out of range, there are ", spec().parts.size());
    return spec().parts[static_cast<size_t>(part)];
  }
  void mark_rows(const LinearPart& part, int64_t first, int64_t count, int64_t first_of_part);

  PanelLinear* packed_;                // null: finished
  std::unique_ptr<PanelLinear> made_;  // null: it was there
  std::vector<int64_t> first_row_;     // of each part
  std::mutex mutex_;                   // guards row_written_
  std::vector<bool> row_written_;
  std::vector<bool> bias_written_;
};

void PanelPacker::mark_rows(const LinearPart& part, int64_t first, int64_t count, int64_t first_of_part) {
  const std::lock_guard lock(mutex_);
  for (int64_t row = first; row < first + count; ++row) {
    check(!row_written_[static_cast<size_t>(row)], "weight '", spec().name, "': row ", row - first_of_part,
          " of part '", part.name, "' written twice");
    row_written_[static_cast<size_t>(row)] = true;
  }
}

void PanelPacker::write_rows(int part_index, int64_t first_row, const Tensor& rows) {
  const LinearPart& part = part_at(part_index);
  check(rows.ndim == 2 && rows.shape[1] == spec().in_features && rows.stride[1] == 1, "weight '", spec().name,
        "': part '", part.name, "' needs rows of ", spec().in_features, " contiguous features, got ",
        rows.ndim == 2 ? rows.shape[1] : -1);
  const int64_t count = rows.shape[0];
  check(first_row >= 0 && first_row + count <= part.rows, "weight '", spec().name, "': rows [", first_row, ", ",
        first_row + count, ") out of range, part '", part.name, "' has ", part.rows);
  check(rows.dtype == DType::kF32 || rows.dtype == DType::kBF16, "weight '", spec().name,
        "': rows must be float32 or bfloat16, got ", name_of(rows.dtype));
  const int64_t first_of_part = first_row_[static_cast<size_t>(part_index)];
  const int64_t first = first_of_part + first_row;
  mark_rows(part, first, count, first_of_part);
  for (int64_t done = 0; done < count;) {
    const int64_t row = first + done;
    const int64_t lane = row % kPanelWidth;
    const int64_t n = std::min(kPanelWidth - lane, count - done);
    const auto write = [&](const auto* from) {
      write_panel(spec().dtype, from + done * rows.stride[0], rows.stride[0], spec().in_features, lane, n,
                  packed_->panel(row / kPanelWidth));
    };
    rows.dtype == DType::kF32 ? write(rows.as<const float>()) : write(rows.as<const BFloat16>());
    done += n;
  }
}

void PanelPacker::write_bias(int part_index, const Tensor& bias) {
  const LinearPart& part = part_at(part_index);
  check(spec().bias, "weight '", spec().name, "' was declared without bias, part '", part.name, "' brings one");
  check(bias.numel() == part.rows && bias.contiguous(), "weight '", spec().name, "': bias of part '", part.name,
        "' must be [", part.rows, "], got ", bias.numel(), " elements");
  check(!bias_written_[static_cast<size_t>(part_index)], "weight '", spec().name, "': bias of part '", part.name,
        "' written twice");
  check(bias.dtype == DType::kF32 || bias.dtype == DType::kBF16, "weight '", spec().name,
        "': bias must be float32 or bfloat16, got ", name_of(bias.dtype));
  bias_written_[static_cast<size_t>(part_index)] = true;
  float* to = packed_->bias() + first_row_[static_cast<size_t>(part_index)];
  for (int64_t i = 0; i < part.rows; ++i)
    to[i] = bias.dtype == DType::kF32 ? bias.as<const float>()[i] : to_f32(bias.as<const BFloat16>()[i]);
}

std::unique_ptr<PackedLinear> PanelPacker::finish() {
  check(packed_ != nullptr, "weight already finished");
  for (size_t i = 0; i < spec().parts.size(); ++i) {
    const LinearPart& part = spec().parts[i];
    for (int64_t row = 0; row < part.rows; ++row)
      check(row_written_[static_cast<size_t>(first_row_[i] + row)], "weight '", spec().name, "': row ", row,
            " of part '", part.name, "' (", part.rows, " rows) is missing");
    check(!spec().bias || bias_written_[i], "weight '", spec().name, "': bias of part '", part.name, "' is missing");
  }
  packed_ = nullptr;
  return std::move(made_);
}

}  // namespace

std::unique_ptr<LinearPacker> CpuOps::pack(const LinearSpec& spec) {
  check(spec.in_features > 0 && spec.out_features() > 0, "weight '", spec.name, "': shape must be positive, got [",
        spec.out_features(), ", ", spec.in_features, "]");
  check(spec.dtype == DType::kF32 || spec.dtype == DType::kBF16, "weight '", spec.name,
        "': dtype must be float32 or bfloat16, got ", name_of(spec.dtype));
  return std::make_unique<PanelPacker>(
      std::make_unique<PanelLinear>(spec, spec.row_parallel ? tree_leaves_ : 1, device_));
}

std::unique_ptr<LinearPacker> CpuOps::repack(PackedLinear& weight) {
  auto* panels = dynamic_cast<PanelLinear*>(&weight);
  check(panels != nullptr, "weight '", weight.spec().name, "' is another backend's");
  return std::make_unique<PanelPacker>(*panels);
}

}  // namespace rtp_llm::cpu
