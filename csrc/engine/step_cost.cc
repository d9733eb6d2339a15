#include "engine/step_cost.h"

#include <algorithm>
#include <bit>

namespace rtp_llm {

namespace {

// Weight of the newest measurement: half of the average is the last 7 steps or so.
constexpr double kNewest = 0.1;

void average(double& mean, double value) { mean = mean == 0 ? value : mean + kNewest * (value - mean); }

int bucket_of(int rows, int buckets) {
  return std::min(static_cast<int>(std::bit_width(static_cast<unsigned>(rows))) - 1, buckets - 1);
}

}  // namespace

void StepCost::observe(int decode_rows, int64_t prefill_rows, double seconds) {
  if (decode_rows > 0 && prefill_rows == 0) average(decode_s_[bucket_of(decode_rows, kBuckets)], seconds);
  if (prefill_rows == 0) return;
  // A mixed step reads the weights once for both: what it takes beyond the decodes is the prefill's.
  const double prefill_s = std::max(seconds - decode_s(decode_rows), 0.1 * seconds);
  average(prefill_row_s_, prefill_s / static_cast<double>(prefill_rows));
}

double StepCost::decode_s(int decode_rows) const {
  if (decode_rows <= 0) return 0;
  const int bucket = bucket_of(decode_rows, kBuckets);
  for (int apart = 0; apart < kBuckets; ++apart) {  // the nearest measured one
    if (bucket - apart >= 0 && decode_s_[bucket - apart] > 0) return decode_s_[bucket - apart];
    if (bucket + apart < kBuckets && decode_s_[bucket + apart] > 0) return decode_s_[bucket + apart];
  }
  return 0;
}

int64_t StepCost::prefill_rows_within(double seconds) const {
  if (prefill_row_s_ == 0) return INT64_MAX;
  return seconds <= 0 ? 0 : static_cast<int64_t>(std::min(seconds / prefill_row_s_, 1e9));
}

}  // namespace rtp_llm
