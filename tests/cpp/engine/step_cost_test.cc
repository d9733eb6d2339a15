#include "engine/step_cost.h"

#include <cstdint>

#include "check.h"

namespace rtp_llm {
namespace {

TEST(nothing_measured_limits_nothing) {
  StepCost cost;
  CHECK_EQ(cost.decode_s(3), 0.0);
  CHECK_EQ(cost.prefill_rows_within(0.001), INT64_MAX);
}

TEST(a_decode_step_is_predicted_from_the_nearest_measured_number_of_rows) {
  StepCost cost;
  cost.observe(1, 0, 0.010);
  cost.observe(16, 0, 0.040);
  CHECK_EQ(cost.decode_s(1), 0.010);
  CHECK_EQ(cost.decode_s(2), 0.010);
  CHECK_EQ(cost.decode_s(20), 0.040);
  CHECK_EQ(cost.decode_s(0), 0.0);
}

TEST(what_a_mixed_step_takes_beyond_its_decodes_is_its_prefills_cost) {
  StepCost cost;
  cost.observe(4, 0, 0.020);
  cost.observe(4, 100, 0.120);
  CHECK_NEAR(static_cast<double>(cost.prefill_rows_within(0.05)), 50, 1);
  CHECK_EQ(cost.prefill_rows_within(-0.01), 0);
}

TEST(new_measurements_move_the_average_slowly) {
  StepCost cost;
  cost.observe(1, 0, 0.010);
  cost.observe(1, 0, 0.110);
  CHECK_NEAR(cost.decode_s(1), 0.020, 1e-9);
}

}  // namespace
}  // namespace rtp_llm
