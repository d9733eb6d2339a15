// Decoder: the forward pass of a decoder-only transformer (Llama, Qwen3), readable as one.
//
// Two launches a step: forward (tokens -> logits of the sampled rows) and sample. Thread rule:
// engine thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "device/ops.h"
#include "kv/kv_layout.h"
#include "model/weights.h"

namespace rtp_llm {

// One step's inputs, device memory where it says Tensor.
struct StepInput {
  Tensor tokens;                   // [M] i32; kTokenFromSlot for decode rows
  const StepRows* rows = nullptr;  // of the M rows
  Tensor logit_rows;               // [R] i32: rows whose logits are wanted; R may be 0
};

class Decoder {
 public:
  // REQUIRES: weights are finished and outlive the decoder.
  Decoder(Device& device, const Weights& weights);
  ~Decoder();

  const ModelConfig& config() const;
  const std::string& model_digest() const;
  KvLayout kv_layout(DType kv_dtype, int block_tokens) const;

  // Activations and workspaces for steps of up to max_rows rows, max_logit_rows logits, positions
  // below max_positions.
  void allocate(int64_t max_rows, int64_t max_logit_rows, int64_t max_positions);

  // Launches the model. kv_pool: base of the pool of num_blocks blocks laid out by kv_layout(). After each run of
  // `layers_per_message` layers the last store is launched and on_layers(first_layer, num_layers) is called (it may be
  // empty): an event recorded in it says when they are stored. Returns logits [R, vocab] f32, valid until the next
  // forward. Advances slots' seq_len. REQUIRES: allocate() was called with enough room.
  Tensor forward(const StepInput& input, const KvLayout& layout, void* kv_pool, int64_t num_blocks,
                 int layers_per_message, const std::function<void(int, int)>& on_layers);

 private:
  struct Activations;
  AttentionArgs attention_of(const Tensor& qkv, const KvView& kv, const StepRows& rows, const Tensor& out);
  Tensor compute_logits(const Tensor& logit_rows, const Tensor& stream);
  void check_step(const StepInput& input, int layers_per_message) const;

  Device& device_;
  const Weights& weights_;
  std::unique_ptr<Activations> activations_;
};

}  // namespace rtp_llm
