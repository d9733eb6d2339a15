#include "engine/sampling.h"

#include "check.h"

namespace rtp_llm {
namespace {

TEST(a_temperature_too_low_to_divide_by_is_greedy) {
  SequenceSpec spec;
  for (const float greedy : {0.0f, 1e-40f, 1e-38f, 9.9e-6f}) {
    spec.sampling.temperature = greedy;
    CHECK_EQ(sampling_state(spec, {}).temperature, 0.0f);
  }
  for (const float kept : {kLeastTemperature, 1.0f}) {
    spec.sampling.temperature = kept;
    CHECK_EQ(sampling_state(spec, {}).temperature, kept);
  }
}

}  // namespace
}  // namespace rtp_llm
