// Scorer: logits of every position of given tokens, one sequence at a time, without an engine. What parity
// tests measure the forward pass by.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "device/step_inputs.h"
#include "model/decoder.h"

namespace rtp_llm {

struct ScorerOptions {
  int64_t max_tokens = 256;  // of one sequence
  int block_tokens = 16;
  int64_t chunk_tokens = 64;  // rows of a step
  DType kv_dtype = DType::kF32;
};

// Owns its KV pool and slot. Allocates the decoder's activations: the decoder is the scorer's alone.
class Scorer {
 public:
  // REQUIRES: device and decoder outlive the scorer.
  Scorer(Device& device, Decoder& decoder, const ScorerOptions& options);

  // [tokens, vocab] f32, row i: logits of the token after tokens[i]. Throws InvalidArgument if tokens is
  // empty, longer than max_tokens or holds an id out of range.
  std::vector<float> logits(std::span<const int32_t> tokens);

 private:
  Tensor add_buffer(const char* tag, DType dtype, int64_t elements);
  void bind();

  Device& device_;
  Decoder& decoder_;
  ScorerOptions options_;
  KvLayout layout_;
  int64_t num_blocks_;
  std::vector<Buffer> buffers_;
  Tensor kv_pool_;   // a scratch block behind the last one
  Tensor all_rows_;  // 0, 1, …: every row's logits
  Slots slots_;      // one, and the padding slot
  std::optional<StepInputs> inputs_;
};

}  // namespace rtp_llm
