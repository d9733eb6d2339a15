// What the device tests share: the backends of this machine, tensors with owners, random numbers, a
// small paged pool, and plain double-precision references.
#pragma once

#include <dlfcn.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "device/device.h"
#include "device/ops.h"
#include "device/step_inputs.h"

namespace rtp_llm::testing {

// The directory of librtp_core.so: the backends lie beside it.
inline std::string library_dir() {
  Dl_info info{};
  dladdr(reinterpret_cast<void*>(&supported_isas), &info);
  return std::filesystem::absolute(info.dli_fname).parent_path().string();
}

// One device per (ISA, threads), kept for the run of the binary.
inline Device& device_of(const std::string& isa, int num_threads = 1, int tree_leaves = 0) {
  static std::deque<std::pair<std::string, std::unique_ptr<Device>>> open;
  const std::string key = concat(isa, "/", num_threads, "/", tree_leaves);
  for (auto& [name, device] : open)
    if (name == key) return *device;
  DeviceOptions options{.num_threads = num_threads, .isa = isa, .tree_leaves = tree_leaves};
  return *open.emplace_back(key, open_device("cpu", options, library_dir())).second;
}

// Runs the body on every ISA of this machine; failures name it.
inline void on_each_isa(const std::function<void(const std::string&)>& body) {
  for (const std::string& isa : supported_isas()) {
    if (!std::filesystem::exists(library_dir() + "/librtp_cpu_" + isa + ".so")) continue;
    body(isa);
  }
}

// A tensor that owns its bytes.
class Owned {
 public:
  Owned(DType dtype, std::initializer_list<int64_t> shape) {
    tensor_ = make_tensor(nullptr, dtype, shape);
    bytes_ = std::make_shared<std::vector<uint8_t>>(static_cast<size_t>(tensor_.numel() * size_of(dtype)) + 64);
    tensor_.data = bytes_->data();
  }
  operator const Tensor&() const { return tensor_; }
  const Tensor& view() const { return tensor_; }
  int64_t numel() const { return tensor_.numel(); }
  int64_t num_bytes() const { return tensor_.numel() * size_of(tensor_.dtype); }
  template <class T>
  T* as() const {
    return tensor_.as<T>();
  }
  // As a number, whatever the type.
  double at(int64_t i) const {
    return tensor_.dtype == DType::kF32   ? as<float>()[i]
           : tensor_.dtype == DType::kI32 ? as<int32_t>()[i]
                                          : to_f32(as<BFloat16>()[i]);
  }
  void set(int64_t i, float value) const {
    if (tensor_.dtype == DType::kF32)
      as<float>()[i] = value;
    else
      as<BFloat16>()[i] = to_bf16(value);
  }

 private:
  Tensor tensor_;
  std::shared_ptr<std::vector<uint8_t>> bytes_;
};

inline Owned floats(std::initializer_list<int64_t> shape, const std::vector<float>& values) {
  Owned x(DType::kF32, shape);
  std::copy(values.begin(), values.end(), x.as<float>());
  return x;
}

inline Owned ints(const std::vector<int32_t>& values) {
  Owned x(DType::kI32, {static_cast<int64_t>(values.size())});
  std::copy(values.begin(), values.end(), x.as<int32_t>());
  return x;
}

inline Owned random_tensor(DType dtype, std::initializer_list<int64_t> shape, uint32_t seed, float scale = 1.0f) {
  Owned x(dtype, shape);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  for (int64_t i = 0; i < x.numel(); ++i) x.set(i, normal(random));
  return x;
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.numel() == b.numel() && a.dtype == b.dtype &&
         std::memcmp(a.data, b.data, static_cast<size_t>(a.numel() * size_of(a.dtype))) == 0;
}

inline bool same_row(const Tensor& a, int64_t row_a, const Tensor& b, int64_t row_b) {
  const auto bytes = static_cast<size_t>(a.shape[1] * size_of(a.dtype));
  return std::memcmp(a.as<uint8_t>() + row_a * a.stride[0] * size_of(a.dtype),
                     b.as<uint8_t>() + row_b * b.stride[0] * size_of(b.dtype), bytes) == 0;
}

inline std::unique_ptr<PackedLinear> packed(Ops& ops, const Owned& weight, DType dtype, const Owned* bias = nullptr,
                                            bool row_parallel = false) {
  auto packer = ops.pack({.name = "test",
                          .in_features = weight.view().shape[1],
                          .parts = {{"all", weight.view().shape[0]}},
                          .bias = bias != nullptr,
                          .dtype = dtype,
                          .gather = true,
                          .row_parallel = row_parallel});
  packer->write_rows(0, 0, weight);
  if (bias != nullptr) packer->write_bias(0, *bias);
  return packer->finish();
}

// The StepRows of some segments, as an op of the CPU reads them: without device tables.
class Step {
 public:
  Step(const Slots& slots, std::span<const Segment> segments, std::span<const SampleRow> samples = {})
      : segments_(segments.begin(), segments.end()) {
    rows_.slots = &slots;
    for (const Segment& segment : segments_) {
      (segment.form == Form::kPrefill ? prefills_ : decodes_).push_back(segment);
      rows_.num_rows += segment.rows;
    }
    rows_.segments = segments_;
    rows_.prefills = prefills_;
    rows_.decodes = decodes_;
    rows_.sample_rows = samples;
  }
  Step(const Step&) = delete;
  operator const StepRows*() const { return &rows_; }

 private:
  std::vector<Segment> segments_, prefills_, decodes_;
  StepRows rows_;
};

// Slots and a pool of one layer. Blocks of a sequence are scattered over the pool.
struct PagedSequences {
  PagedSequences(int num_slots, int64_t max_positions, int block_tokens, int kv_heads, int head_dim, DType dtype)
      : last_token(DType::kI32, {num_slots}),
        seq_len(DType::kI32, {num_slots}),
        output_position(DType::kI32, {num_slots}),
        tables(DType::kI32, {num_slots, (max_positions + block_tokens - 1) / block_tokens}),
        sampling(static_cast<size_t>(num_slots)) {
    const int64_t blocks = tables.numel();
    std::vector<int32_t> ids(static_cast<size_t>(blocks));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(17));
    std::copy(ids.begin(), ids.end(), tables.as<int32_t>());
    const int64_t token = int64_t{head_dim} * size_of(dtype), head = token * block_tokens;
    pool.resize(static_cast<size_t>(blocks * 2 * kv_heads * head));
    kv = {.base = pool.data(),
          .block_stride = 2 * kv_heads * head,
          .plane_offset = {0, kv_heads * head},
          .head_stride = head,
          .token_stride = token,
          .num_heads = kv_heads,
          .head_dim = head_dim,
          .block_tokens = block_tokens,
          .num_blocks = blocks,
          .dtype = dtype};
    slots = {.last_token = last_token,
             .seq_len = seq_len,
             .output_position = output_position,
             .block_tables = tables,
             .sampling = sampling.data()};
  }
  uint8_t* vector_at(int slot, int plane, int head, int64_t position) {
    const int32_t block = tables.as<int32_t>()[slot * tables.view().shape[1] + position / kv.block_tokens];
    return kv.base + block * kv.block_stride + kv.plane_offset[plane] + head * kv.head_stride +
           position % kv.block_tokens * kv.token_stride;
  }
  Owned last_token, seq_len, output_position, tables;
  std::vector<SamplingState> sampling;
  std::vector<uint8_t> pool;
  KvView kv;
  Slots slots;
};

}  // namespace rtp_llm::testing
