// Inverse frequencies of rotary position embeddings, rounded where Hugging Face's modeling_rope_utils
// rounds (f32 throughout), so that angles = f32(inv_freq * position) agree.
#pragma once

#include <cstdint>
#include <vector>

#include "device/ops.h"
#include "device/scalar_math.h"
#include "tensor/check.h"

namespace rtp_llm {

// `rope_scaling` of config.json; kNone ignores the rest.
struct RopeScalingParams {
  RopeScaling type = RopeScaling::kNone;
  float factor = 1.0f;
  float low_freq_factor = 1.0f;
  float high_freq_factor = 4.0f;
  float original_max_position_embeddings = 8192.0f;
};

// Llama 3: long wavelengths are stretched by `factor`, short ones kept, those between interpolated.
inline float llama3_scaled(float inv_freq, const RopeScalingParams& scaling) {
  const float wavelength = 6.283185307179586f / inv_freq;
  const float low_wavelength = scaling.original_max_position_embeddings / scaling.low_freq_factor;
  const float high_wavelength = scaling.original_max_position_embeddings / scaling.high_freq_factor;
  if (wavelength < high_wavelength) return inv_freq;
  if (wavelength > low_wavelength) return inv_freq / scaling.factor;
  const float smooth = (scaling.original_max_position_embeddings / wavelength - scaling.low_freq_factor) /
                       (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1.0f - smooth) * inv_freq / scaling.factor + smooth * inv_freq;
}

// [rotary_dim / 2]: 1 / theta^(2i / rotary_dim), scaled. rotary_dim is head_dim for Llama and Qwen.
// Throws InvalidArgument for an odd dimension, theta <= 0 or factors that make no sense.
inline std::vector<float> rope_table(int rotary_dim, double theta, const RopeScalingParams& scaling = {}) {
  check(rotary_dim > 0 && rotary_dim % 2 == 0, "rope: rotary dimension must be even and positive, got ", rotary_dim);
  check(theta > 0, "rope: theta must be positive, got ", theta);
  if (scaling.type == RopeScaling::kLlama3) {
    check(scaling.factor > 0, "rope: llama3 factor must be positive, got ", scaling.factor);
    check(scaling.low_freq_factor > 0 && scaling.high_freq_factor > scaling.low_freq_factor,
          "rope: llama3 needs 0 < low_freq_factor < high_freq_factor, got ", scaling.low_freq_factor, " and ",
          scaling.high_freq_factor);
    check(scaling.original_max_position_embeddings > 0, "rope: original_max_position_embeddings must be positive, got ",
          scaling.original_max_position_embeddings);
  }
  std::vector<float> table(static_cast<size_t>(rotary_dim / 2));
  for (size_t i = 0; i < table.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(rotary_dim);
    const auto power = static_cast<float>(exp_f64(exponent * log_f64(theta)));
    table[i] = 1.0f / power;
    if (scaling.type == RopeScaling::kLlama3) table[i] = llama3_scaled(table[i], scaling);
  }
  return table;
}

}  // namespace rtp_llm
