// The own math of rope tables, and of activations as far as it shows in ops.
#include "device/rope.h"
#include "device/scalar_math.h"

#include "device_fixture.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

TEST(scalar_math_agrees_with_libm) {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> unit(0, 1);
  for (int i = 0; i < 20000; ++i) {
    const double x = std::exp(unit(random) * 40 - 20), y = unit(random) * 100 - 50, angle = unit(random) * 1.04e6;
    CHECK_NEAR(log_f64(x), std::log(x), 4e-16 * (1 + std::fabs(std::log(x))));
    CHECK_NEAR(exp_f64(y) / std::exp(y), 1.0, 4e-16);
    const auto rounded = static_cast<float>(angle);
    const SinCos value = sin_cos_f64(rounded);
    CHECK_NEAR(value.sin, std::sin(static_cast<double>(rounded)), 3e-16);
    CHECK_NEAR(value.cos, std::cos(static_cast<double>(rounded)), 3e-16);
  }
}

// Values of transformers' LlamaRotaryEmbedding in float32.
TEST(rope_tables_are_those_of_hugging_face) {
  const std::vector<float> plain = rope_table(64, 10000.0);
  CHECK_EQ(plain[0], 1.0f);
  CHECK_EQ(plain[1], 0.749894202f);
  CHECK_EQ(plain[31], 0.00013335215f);
  const std::vector<float> scaled = rope_table(64, 500000.0,
                                               {.type = RopeScaling::kLlama3,
                                                .factor = 32.0f,
                                                .low_freq_factor = 1.0f,
                                                .high_freq_factor = 4.0f,
                                                .original_max_position_embeddings = 8192.0f});
  const std::vector<float> unscaled = rope_table(64, 500000.0);
  CHECK_EQ(scaled[0], 1.0f);
  CHECK_EQ(scaled[31], unscaled[31] / 32.0f);
  CHECK(scaled[16] < unscaled[16] && scaled[16] > unscaled[16] / 32.0f);
  CHECK_THROWS_WITH(rope_table(63, 10000.0), InvalidArgument, "63");
  CHECK_THROWS_WITH(rope_table(64, -1.0), InvalidArgument, "theta");
}

TEST(rope_rotates_halves_by_the_angle_of_the_position) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    PagedSequences sequences(2, 16, 16, 1, 4, DType::kF32);
    sequences.seq_len.as<int32_t>()[1] = 1000000;
    const Owned inv_freq = floats({2}, {1.0f, 0.01f});
    const Owned x = floats({2, 1, 4}, {1, 2, 3, 4, 1, 2, 3, 4});
    const Segment segments[] = {{.slot = 0, .first_row = 0, .rows = 1}, {.slot = 1, .first_row = 1, .rows = 1}};
    ops.rope({.x = x, .inv_freq = inv_freq, .step = Step(sequences.slots, segments)});
    for (int i = 0; i < 4; ++i) CHECK_EQ(x.at(i), i + 1.0);  // position 0
    for (int i = 0; i < 2; ++i) {
      const double angle = 1e6f * (i == 0 ? 1.0f : 0.01f), a = i + 1.0, b = i + 3.0;
      CHECK_NEAR(x.at(4 + i), a * std::cos(angle) - b * std::sin(angle), 5e-7);
      CHECK_NEAR(x.at(6 + i), b * std::cos(angle) + a * std::sin(angle), 5e-7);
    }
  });
}

TEST(gated_activations_are_close_to_double) {
  on_each_isa([](const std::string& isa) {
    constexpr int kFeatures = 4099;
    const Owned gate_up(DType::kF32, {1, 2 * kFeatures}), out(DType::kF32, {1, kFeatures});
    for (int i = 0; i < kFeatures; ++i) {
      gate_up.set(i, (static_cast<float>(i) - 2050.0f) / 100.0f);
      gate_up.set(kFeatures + i, 1.0f + static_cast<float>(i % 7));
    }
    gate_up.set(0, -1000.0f), gate_up.set(1, 1000.0f);
    const auto expected = [](Activation activation, double x) {
      switch (activation) {
        case Activation::kSilu: return x / (1 + std::exp(-x));
        case Activation::kGelu: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
        case Activation::kGeluTanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
      }
      return 0.0;
    };
    for (int threads : {1, 2})
      for (Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
        device_of(isa, threads).ops().gated_activation({.gate_up = gate_up, .activation = activation, .out = out});
        for (int i = 0; i < kFeatures; ++i) {
          const double y = expected(activation, gate_up.at(i)) * gate_up.at(kFeatures + i);
          CHECK_NEAR(out.at(i), y, 4e-6 * std::max(1.0, std::fabs(y)));
        }
      }
  });
}
