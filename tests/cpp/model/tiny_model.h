// A tiny random model on the CPU, and one way to run it: what the tests of csrc/model share.
#pragma once

#include <dlfcn.h>

#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include "device/device.h"
#include "device/step_inputs.h"
#include "model/decoder.h"
#include "model/random_weights.h"
#include "model/weights.h"

namespace rtp_llm::testing {

// Backends lie beside librtp_core.so.
inline std::unique_ptr<Device> open_cpu(int num_threads = 1, const std::string& isa = "") {
  Dl_info info{};
  check(dladdr(reinterpret_cast<void*>(&supported_isas), &info) != 0, "librtp_core.so not found");
  return open_device("cpu", {.num_threads = num_threads, .isa = isa},
                     std::filesystem::path(info.dli_fname).parent_path().string());
}

inline ModelConfig tiny_config(DType dtype = DType::kF32) {
  return {.architecture = "Qwen3ForCausalLM",
          .vocab_size = 101,
          .hidden_size = 48,
          .intermediate_size = 80,
          .num_hidden_layers = 3,
          .num_attention_heads = 4,
          .num_key_value_heads = 2,
          .head_dim = 16,
          .qk_norm = true,
          .max_position_embeddings = 1024,
          .dtype = dtype};
}

// Values large enough that attention and MLP matter, norms near 1, biases near 0.
inline void write_test_weights(Weights& weights, int64_t chunk_rows = 7) {
  for (const ExpectedTensor& tensor : weights.expected()) {
    std::mt19937 random(static_cast<unsigned>(std::hash<std::string>{}(tensor.name)));
    std::normal_distribution<float> normal;
    const bool matrix = tensor.shape.size() == 2;
    const int64_t width = matrix ? tensor.shape[1] : 1;
    std::vector<float> values(tensor.shape[0] * width);
    for (float& value : values)
      value =
          matrix ? 0.2f * normal(random) : (tensor.name.ends_with("norm.weight") ? 1.0f : 0.0f) + 0.1f * normal(random);
    for (int64_t row = 0; row < tensor.shape[0]; row += chunk_rows) {
      const int64_t rows = std::min(chunk_rows, tensor.shape[0] - row);
      weights.write(tensor.name, row, rows, width, DType::kF32, values.data() + row * width);
    }
  }
  weights.finish();
}

// A model with its own pool and slots, run step by step. Blocks are handed out scattered.
struct TinyModel {
  struct Run {
    int32_t slot;
    std::vector<int32_t> tokens;
    Form form = Form::kPrefill;
  };

  TinyModel(Device& device, const ModelConfig& config, int block_tokens, DType kv_dtype, int num_slots = 4)
      : TinyModel(device, std::make_unique<Weights>(device, config), block_tokens, kv_dtype, num_slots) {}

  TinyModel(Device& device, std::unique_ptr<Weights> filled, int block_tokens, DType kv_dtype, int num_slots = 4)
      : device(device), weights(std::move(filled)) {
    if (!weights->finished()) write_test_weights(*weights);
    decoder = std::make_unique<Decoder>(device, *weights);
    layout = decoder->kv_layout(kv_dtype, block_tokens);
    decoder->allocate(kMaxRows, kMaxRows, kMaxPositions);
    const int64_t per_slot = (kMaxPositions + block_tokens - 1) / block_tokens;
    num_blocks = per_slot * num_slots;
    pool = device.allocate(num_blocks * layout.groups[0].block_bytes(), "test.pool");
    host_tables.resize(num_blocks);
    for (int64_t i = 0; i < num_blocks; ++i) host_tables[i] = static_cast<int32_t>((i * 7 + 3) % num_blocks);
    if (std::gcd<int64_t>(7, num_blocks) != 1) std::iota(host_tables.rbegin(), host_tables.rend(), 0);
    lens.resize(num_slots);
    zeros.resize(num_slots);
    slots.last_token = make_tensor(last.data(), DType::kI32, {num_slots});
    slots.seq_len = make_tensor(lens.data(), DType::kI32, {num_slots});
    slots.output_position = make_tensor(zeros.data(), DType::kI32, {num_slots});
    slots.block_tables = make_tensor(host_tables.data(), DType::kI32, {num_slots, per_slot});
    inputs.emplace(device, StepLimits{.rows = kMaxRows + 1, .segments = 8, .block_ids = 1}, slots);
  }

  // Logits of every row, [rows][vocab], in order of the runs.
  std::vector<std::vector<float>> step(const std::vector<Run>& runs,
                                       const std::function<void(int, int)>& on_layers = {},
                                       int layers_per_message = 2) {
    inputs->clear();
    for (const Run& run : runs) inputs->add(run.slot, run.tokens, run.form, lens[run.slot]);
    inputs->upload();
    const int64_t count = inputs->num_rows();
    std::vector<int32_t> rows(count);
    std::iota(rows.begin(), rows.end(), 0);
    const Tensor logits = decoder->forward({.tokens = inputs->tokens(),
                                            .rows = &inputs->rows(),
                                            .logit_rows = make_tensor(rows.data(), DType::kI32, {count})},
                                           layout, pool.data(), num_blocks, layers_per_message, on_layers);
    std::vector<std::vector<float>> result;
    for (int64_t row = 0; row < count; ++row) {
      const float* values = logits.rows(row, 1).as<float>();
      result.emplace_back(values, values + logits.shape[1]);
    }
    return result;
  }

  // Prefill of `tokens` in chunks on a slot; logits of every row.
  std::vector<std::vector<float>> prefill(int32_t slot, const std::vector<int32_t>& tokens, size_t chunk) {
    std::vector<std::vector<float>> all;
    for (size_t first = 0; first < tokens.size(); first += chunk) {
      const size_t end = std::min(tokens.size(), first + chunk);
      auto rows = step({{.slot = slot, .tokens = {tokens.begin() + first, tokens.begin() + end}}});
      std::move(rows.begin(), rows.end(), std::back_inserter(all));
    }
    return all;
  }

  static constexpr int64_t kMaxRows = 160, kMaxPositions = 192;
  Device& device;
  std::unique_ptr<Weights> weights;
  std::unique_ptr<Decoder> decoder;
  KvLayout layout;
  int64_t num_blocks = 0;
  Buffer pool;
  std::vector<int32_t> host_tables, lens, zeros;
  std::vector<int32_t> last = std::vector<int32_t>(64);
  Slots slots;
  std::optional<StepInputs> inputs;
};

inline std::vector<int32_t> random_tokens(int count, int seed, int vocab = 101) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % vocab);
  return tokens;
}

}  // namespace rtp_llm::testing
