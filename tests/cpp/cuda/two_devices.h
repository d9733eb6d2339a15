// A GPU beside the CPU: the same slots, pool and step on both, so that each op of the CUDA backend can be held against
// the CPU's on fresh random inputs. Outputs are poisoned before each run.
#pragma once

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "../device/device_fixture.h"
#include "device/step_inputs.h"

namespace rtp_llm::testing {

// The GPU of this machine; null (said once) if there is none or the backend isn't built.
inline Device* gpu() {
  static const std::unique_ptr<Device> device = [] {
    std::unique_ptr<Device> found;
    try {
      found = open_device("cuda", {}, library_dir());
    } catch (const Unavailable& error) {
      std::cerr << "no GPU to test on: " << error.what() << "\n";
    }
    return found;
  }();
  return device.get();
}

inline Device& cpu() { return device_of("", 2); }

// Every test's numbers are new: the seed is printed, RTP_TEST_SEED repeats it.
inline uint32_t fresh_seed() {
  static uint32_t next = [] {
    const char* given = std::getenv("RTP_TEST_SEED");
    const uint32_t seed = given != nullptr ? static_cast<uint32_t>(std::atoll(given)) : std::random_device{}();
    std::cerr << "RTP_TEST_SEED=" << seed << "\n";
    return seed;
  }();
  return next++;
}

// A tensor on a device, with its owner.
class Placed {
 public:
  Placed(Device& device, const Owned& from) : Placed(device, from.view()) {
    device.copy(tensor_.data, from.view().data, bytes());
  }
  // Filled with bytes that are NaN in every type.
  Placed(Device& device, const Tensor& shape) : device_(device), tensor_(shape) {
    buffer_ = device.allocate(std::max<int64_t>(bytes(), 16), "test");
    tensor_.data = buffer_.data();
    const std::vector<uint8_t> poison(static_cast<size_t>(bytes()), 0xff);
    device.copy(tensor_.data, poison.data(), bytes());
  }
  operator const Tensor&() const { return tensor_; }
  const Tensor& view() const { return tensor_; }
  std::vector<float> values() const {
    device_.synchronize();
    std::vector<uint8_t> raw(static_cast<size_t>(bytes()));
    device_.copy(raw.data(), tensor_.data, bytes());
    std::vector<float> values(static_cast<size_t>(tensor_.numel()));
    for (size_t i = 0; i < values.size(); ++i) {
      if (tensor_.dtype == DType::kBF16)
        values[i] = to_f32(reinterpret_cast<const BFloat16*>(raw.data())[i]);
      else if (tensor_.dtype == DType::kF32)
        values[i] = reinterpret_cast<const float*>(raw.data())[i];
      else
        values[i] = static_cast<float>(reinterpret_cast<const int32_t*>(raw.data())[i]);
    }
    return values;
  }
  std::vector<uint8_t> raw() const {
    device_.synchronize();
    std::vector<uint8_t> raw(static_cast<size_t>(bytes()));
    device_.copy(raw.data(), tensor_.data, bytes());
    return raw;
  }
  int64_t bytes() const { return tensor_.numel() * size_of(tensor_.dtype); }

 private:
  Device& device_;
  Tensor tensor_;
  Buffer buffer_;
};

inline Tensor shape_of(DType dtype, std::initializer_list<int64_t> shape) { return make_tensor(nullptr, dtype, shape); }

// |a - b| / |b| over all elements; NaN, and so a failure, where something wasn't written.
inline double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

// How attention's sequences lie.
struct PoolShape {
  int num_slots = 8;
  int64_t max_positions = 1024;
  int block_tokens = 16;
  int kv_heads = 2;
  int head_dim = 64;
};

// What is said of tokens, in words: SlotUpdate::first_word has their order.
struct TokenRules {
  std::vector<int32_t> biases{}, allowed{}, prompt{}, output{};
};

// One device's slots, pool of one layer, and step.
class Side {
 public:
  // `vocab`: of token words; 0: the slots have none.
  Side(Device& device, const PoolShape& shape, DType kv_dtype, int64_t max_rows, int64_t vocab = 0)
      : device(device), shape_(shape), max_blocks_(shape.max_positions / shape.block_tokens) {
    const int64_t slots = shape.num_slots + 1, blocks = shape.num_slots * max_blocks_ + 1;
    const auto words = [&](std::initializer_list<int64_t> extents) {
      const Tensor shaped = shape_of(DType::kI32, extents);
      buffers_.push_back(device.allocate(shaped.numel() * 4, "slots"));
      return make_tensor(buffers_.back().data(), DType::kI32, extents);
    };
    slots_ = {.last_token = words({slots}),
              .seq_len = words({slots}),
              .output_position = words({slots}),
              .block_tables = words({slots, max_blocks_})};
    buffers_.push_back(device.allocate(slots * static_cast<int64_t>(sizeof(SamplingState)), "sampling"));
    slots_.sampling = static_cast<SamplingState*>(buffers_.back().data());
    if (vocab > 0) {
      slots_.token_words = words({slots, vocab});
      buffers_.push_back(device.allocate(slots * kMaxTokenBiases * static_cast<int64_t>(sizeof(TokenBias)), "biases"));
      slots_.biases = static_cast<TokenBias*>(buffers_.back().data());
    }
    const int64_t token = int64_t{shape.head_dim} * size_of(kv_dtype), head = token * shape.block_tokens;
    block_bytes_ = 2 * shape.kv_heads * head;
    buffers_.push_back(device.allocate(blocks * block_bytes_, "pool"));
    kv = {.base = static_cast<uint8_t*>(buffers_.back().data()),
          .block_stride = block_bytes_,
          .plane_offset = {0, shape.kv_heads * head},
          .head_stride = head,
          .token_stride = token,
          .num_heads = shape.kv_heads,
          .head_dim = shape.head_dim,
          .block_tokens = shape.block_tokens,
          .num_blocks = blocks,
          .dtype = kv_dtype};
    const StepLimits limits{.rows = max_rows,
                            .segments = shape.num_slots + 1,
                            .block_ids = (shape.num_slots + 1) * max_blocks_,
                            .words = 4 * vocab};
    inputs.emplace(device, limits, slots_);
    // Scattered blocks; every entry of the padding slot is the scratch block, the last one.
    std::vector<int32_t> ids(static_cast<size_t>(shape.num_slots * max_blocks_));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(17));
    inputs->clear();
    for (int slot = 0; slot <= shape.num_slots; ++slot) {
      SlotUpdate& update = inputs->update(slot);
      update.binds = 1;
      update.sampling.temperature = 0;
      for (int64_t i = 0; i < max_blocks_; ++i)
        inputs->add_block(slot < shape.num_slots ? ids[static_cast<size_t>(slot * max_blocks_ + i)]
                                                 : static_cast<int32_t>(blocks - 1));
    }
    inputs->upload();
    inputs->apply(kv.base, block_bytes_);
    device.synchronize();
  }

  // A slot with `seq_len` tokens stored.
  void set(int slot, int seq_len, const SamplingState& sampling = {.temperature = 0}, int output_position = 0,
           const TokenRules& rules = {}) {
    inputs->clear();
    SlotUpdate& update = inputs->update(slot);
    update.binds = 1;
    update.seq_len = seq_len;
    update.last_token = slot + 1;
    update.output_position = output_position;
    update.sampling = sampling;
    update.num_allowed = static_cast<int32_t>(rules.allowed.size());
    update.num_prompt = static_cast<int32_t>(rules.prompt.size());
    update.num_output = static_cast<int32_t>(rules.output.size());
    for (const auto* words : {&rules.biases, &rules.allowed, &rules.prompt, &rules.output}) inputs->add_words(*words);
    inputs->upload();
    inputs->apply(kv.base, block_bytes_);
    device.synchronize();
  }

  const Slots& slots() const { return slots_; }
  const StepRows& step() const { return inputs->rows(); }
  Ops& ops() const { return device.ops(); }

  Device& device;
  KvView kv;
  std::optional<StepInputs> inputs;

 private:
  PoolShape shape_;
  int64_t max_blocks_;
  int64_t block_bytes_ = 0;
  std::vector<Buffer> buffers_;
  Slots slots_;
};

struct Run {
  int slot;
  int rows;
  int seq_len;  // before the step
  Form form = Form::kPrefill;
};

// Fills a side's step with runs of rows of dummy tokens and uploads it.
inline void fill_step(Side& side, const std::vector<Run>& runs) {
  for (const Run& run : runs) side.set(run.slot, run.seq_len);
  side.inputs->clear();
  for (const Run& run : runs)
    side.inputs->add(run.slot, std::vector<int32_t>(static_cast<size_t>(run.rows), 1), run.form, run.seq_len);
  side.inputs->upload();
}

}  // namespace rtp_llm::testing
