// Random weights: fills a model's weights without files, for benchmarks and tests of real shapes.
#pragma once

#include <cstdint>

#include "model/weights.h"

namespace rtp_llm {

// Writes every expected tensor: norms are 1, biases 0, matrices uniform in ±sqrt(3) * 0.02 (the standard
// deviation that transformers initialises with), in the model's dtype. A function of (tensor name, row, seed),
// so any machine makes the same weights. Does not finish.
void write_random_weights(Weights& weights, uint64_t seed);

}  // namespace rtp_llm
