// ModelConfig: what the forward pass must know, in Hugging Face's names. Filled from config.json by
// rtp_llm/model.
#pragma once

#include <cstdint>
#include <string>

#include "device/ops.h"
#include "tensor/dtype.h"

namespace rtp_llm {

struct ModelConfig {
  std::string architecture;  // "Qwen3ForCausalLM", "LlamaForCausalLM"
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int num_hidden_layers = 0;
  int num_attention_heads = 0;
  int num_key_value_heads = 0;
  int head_dim = 0;
  float rms_norm_eps = 1e-6f;
  Activation hidden_act = Activation::kSilu;
  bool tie_word_embeddings = false;
  bool attention_bias = false;  // on q, k, v
  bool attention_output_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;
  int max_position_embeddings = 0;
  // Rotary embedding.
  double rope_theta = 10000.0;
  RopeScaling rope_scaling = RopeScaling::kNone;
  double rope_factor = 1.0;  // llama3
  double rope_low_freq_factor = 1.0;
  double rope_high_freq_factor = 4.0;
  int rope_original_max_position = 0;
  DType dtype = DType::kBF16;  // weights are multiplied in

  // Throws InvalidArgument naming the field and the value.
  void validate() const;

  // Every field, one a line, numbers exact: what the model digest takes in.
  std::string canonical_text() const;
};

}  // namespace rtp_llm
