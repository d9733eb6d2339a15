#include "model/model_config.h"

#include <charconv>
#include <cmath>

#include "tensor/check.h"

namespace rtp_llm {
namespace {

// The shortest text that reads back as the same value.
template <class Float>
std::string exact(Float value) {
  char text[32];
  return std::string(text, std::to_chars(text, text + sizeof text, value).ptr);
}

void check_positive(const char* field, int64_t value) { check(value > 0, field, " must be positive, got ", value); }

void check_positive(const char* field, double value) {
  check(std::isfinite(value) && value > 0, field, " must be positive, got ", value);
}

}  // namespace

void ModelConfig::validate() const {
  check(!architecture.empty(), "architecture is empty");
  check_positive("vocab_size", vocab_size);
  check(vocab_size <= INT32_MAX, "vocab_size must fit 31 bits, got ", vocab_size);
  check_positive("hidden_size", hidden_size);
  check_positive("intermediate_size", intermediate_size);
  check_positive("num_hidden_layers", int64_t{num_hidden_layers});
  check_positive("num_attention_heads", int64_t{num_attention_heads});
  check_positive("num_key_value_heads", int64_t{num_key_value_heads});
  check(num_attention_heads % num_key_value_heads == 0,
        "num_attention_heads must be a multiple of num_key_value_heads ", num_key_value_heads, ", got ",
        num_attention_heads);
  check(head_dim > 0 && head_dim % 2 == 0, "head_dim must be even and positive, got ", head_dim);
  check_positive("rms_norm_eps", double{rms_norm_eps});
  check_positive("max_position_embeddings", int64_t{max_position_embeddings});
  check_positive("rope_theta", rope_theta);
  check(dtype == DType::kF32 || dtype == DType::kBF16, "dtype must be float32 or bfloat16, got ", name_of(dtype));
  if (rope_scaling != RopeScaling::kLlama3) return;
  check_positive("rope_factor", rope_factor);
  check_positive("rope_low_freq_factor", rope_low_freq_factor);
  check(rope_high_freq_factor > rope_low_freq_factor,
        "rope_high_freq_factor must be greater than rope_low_freq_factor ", rope_low_freq_factor, ", got ",
        rope_high_freq_factor);
  check_positive("rope_original_max_position", int64_t{rope_original_max_position});
}

std::string ModelConfig::canonical_text() const {
  return concat("architecture=", architecture, "\nvocab_size=", vocab_size, "\nhidden_size=", hidden_size,
                "\nintermediate_size=", intermediate_size, "\nnum_hidden_layers=", num_hidden_layers,
                "\nnum_attention_heads=", num_attention_heads, "\nnum_key_value_heads=", num_key_value_heads,
                "\nhead_dim=", head_dim, "\nrms_norm_eps=", exact(rms_norm_eps),
                "\nhidden_act=", static_cast<int>(hidden_act), "\ntie_word_embeddings=", tie_word_embeddings,
                "\nattention_bias=", attention_bias, "\nattention_output_bias=", attention_output_bias,
                "\nmlp_bias=", mlp_bias, "\nqk_norm=", qk_norm, "\nmax_position_embeddings=", max_position_embeddings,
                "\nrope_theta=", exact(rope_theta), "\nrope_scaling=", static_cast<int>(rope_scaling),
                "\nrope_factor=", exact(rope_factor), "\nrope_low_freq_factor=", exact(rope_low_freq_factor),
                "\nrope_high_freq_factor=", exact(rope_high_freq_factor),
                "\nrope_original_max_position=", rope_original_max_position, "\ndtype=", name_of(dtype), "\n");
}

}  // namespace rtp_llm
