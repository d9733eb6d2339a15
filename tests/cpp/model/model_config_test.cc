#include "model/model_config.h"

#include <cmath>

#include "check.h"
#include "tiny_model.h"

namespace rtp_llm {
namespace {

using testing::tiny_config;

// tiny_config() with one field changed must be refused with a message that contains `text`.
template <class Value>
void refuses(Value ModelConfig::* field, Value value, const char* text) {
  ModelConfig config = tiny_config();
  config.*field = value;
  CHECK_THROWS_WITH(config.validate(), InvalidArgument, text);
}

TEST(a_sound_config_is_accepted) { tiny_config().validate(); }

TEST(each_impossible_field_is_named_with_its_value) {
  refuses(&ModelConfig::architecture, std::string(), "architecture");
  refuses(&ModelConfig::vocab_size, int64_t{0}, "vocab_size must be positive, got 0");
  refuses(&ModelConfig::vocab_size, int64_t{1} << 40, "vocab_size");
  refuses(&ModelConfig::hidden_size, int64_t{-1}, "hidden_size must be positive, got -1");
  refuses(&ModelConfig::intermediate_size, int64_t{0}, "intermediate_size");
  refuses(&ModelConfig::num_hidden_layers, 0, "num_hidden_layers");
  refuses(&ModelConfig::num_attention_heads, 0, "num_attention_heads");
  refuses(&ModelConfig::num_key_value_heads, 0, "num_key_value_heads");
  refuses(&ModelConfig::num_key_value_heads, 3, "multiple of num_key_value_heads 3, got 4");
  refuses(&ModelConfig::head_dim, 15, "head_dim must be even and positive, got 15");
  refuses(&ModelConfig::rms_norm_eps, 0.0f, "rms_norm_eps");
  refuses(&ModelConfig::rms_norm_eps, std::nanf(""), "rms_norm_eps");
  refuses(&ModelConfig::max_position_embeddings, 0, "max_position_embeddings");
  refuses(&ModelConfig::rope_theta, -1.0, "rope_theta");
  refuses(&ModelConfig::dtype, DType::kI32, "dtype must be float32 or bfloat16, got int32");
}

TEST(llama3_scaling_needs_its_factors) {
  ModelConfig config = tiny_config();
  config.rope_scaling = RopeScaling::kLlama3;
  CHECK_THROWS_WITH(config.validate(), InvalidArgument, "rope_original_max_position");
  config.rope_original_max_position = 64;
  config.validate();
  config.rope_high_freq_factor = 0.5;
  CHECK_THROWS_WITH(config.validate(), InvalidArgument, "rope_high_freq_factor");
}

TEST(the_canonical_text_tells_neighbouring_values_apart) {
  ModelConfig a = tiny_config(), b = tiny_config();
  CHECK_EQ(a.canonical_text(), b.canonical_text());
  b.rms_norm_eps = std::nextafter(a.rms_norm_eps, 1.0f);
  CHECK(a.canonical_text() != b.canonical_text());
  b = tiny_config();
  b.rope_theta = std::nextafter(a.rope_theta, 1e9);
  CHECK(a.canonical_text() != b.canonical_text());
}

}  // namespace
}  // namespace rtp_llm
