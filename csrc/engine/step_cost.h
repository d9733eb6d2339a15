// StepCost: what steps have cost, to predict what the next one may take in. Measured while running:
// exponential averages, no configuration.
#pragma once

#include <array>
#include <cstdint>

namespace rtp_llm {

class StepCost {
 public:
  // A step of `decode_rows` and `prefill_rows` took `seconds`.
  void observe(int decode_rows, int64_t prefill_rows, double seconds);

  // Predicted time of a step of decode rows alone; 0 while nothing was measured.
  double decode_s(int decode_rows) const;
  // Prefill rows that take `seconds`; INT64_MAX while nothing was measured, 0 for no time.
  int64_t prefill_rows_within(double seconds) const;

 private:
  // Steps of 2^i to 2^(i+1) - 1 decode rows cost about the same: weights are read once.
  static constexpr int kBuckets = 16;

  std::array<double, kBuckets> decode_s_{};  // 0: not measured
  double prefill_row_s_ = 0;
};

}  // namespace rtp_llm
