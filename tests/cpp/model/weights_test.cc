#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <thread>

#include "check.h"
#include "model/float16.h"
#include "tiny_model.h"

namespace rtp_llm {
namespace {

using testing::open_cpu;
using testing::random_tokens;
using testing::tiny_config;
using testing::TinyModel;
using testing::write_test_weights;

std::map<std::string, std::vector<int64_t>> expected_of(const ModelConfig& config) {
  const auto device = open_cpu();
  std::map<std::string, std::vector<int64_t>> expected;
  for (const ExpectedTensor& tensor : Weights(*device, config).expected()) expected[tensor.name] = tensor.shape;
  return expected;
}

std::string digest_of(const ModelConfig& config, int64_t chunk_rows) {
  const auto device = open_cpu();
  Weights weights(*device, config);
  write_test_weights(weights, chunk_rows);
  return weights.digest();
}

TEST(a_qwen3_layer_expects_hugging_faces_names_and_shapes) {
  const auto expected = expected_of(tiny_config());
  using Shape = std::vector<int64_t>;
  CHECK_EQ(expected.size(), 3 + 3 * 11);
  CHECK_EQ(expected.at("model.embed_tokens.weight"), Shape({101, 48}));
  CHECK_EQ(expected.at("lm_head.weight"), Shape({101, 48}));
  CHECK_EQ(expected.at("model.norm.weight"), Shape({48}));
  const std::string layer = "model.layers.2.";
  CHECK_EQ(expected.at(layer + "input_layernorm.weight"), Shape({48}));
  CHECK_EQ(expected.at(layer + "self_attn.q_proj.weight"), Shape({64, 48}));
  CHECK_EQ(expected.at(layer + "self_attn.k_proj.weight"), Shape({32, 48}));
  CHECK_EQ(expected.at(layer + "self_attn.v_proj.weight"), Shape({32, 48}));
  CHECK_EQ(expected.at(layer + "self_attn.q_norm.weight"), Shape({16}));
  CHECK_EQ(expected.at(layer + "self_attn.k_norm.weight"), Shape({16}));
  CHECK_EQ(expected.at(layer + "self_attn.o_proj.weight"), Shape({48, 64}));
  CHECK_EQ(expected.at(layer + "post_attention_layernorm.weight"), Shape({48}));
  CHECK_EQ(expected.at(layer + "mlp.gate_proj.weight"), Shape({80, 48}));
  CHECK_EQ(expected.at(layer + "mlp.up_proj.weight"), Shape({80, 48}));
  CHECK_EQ(expected.at(layer + "mlp.down_proj.weight"), Shape({48, 80}));
}

TEST(a_tied_model_expects_no_lm_head) {
  ModelConfig config = tiny_config();
  config.tie_word_embeddings = true;
  const auto expected = expected_of(config);
  CHECK(expected.contains("model.embed_tokens.weight"));
  CHECK(!expected.contains("lm_head.weight"));
}

TEST(biases_are_expected_where_the_config_says_so) {
  ModelConfig config = tiny_config();
  config.attention_bias = true;
  CHECK(expected_of(config).contains("model.layers.0.self_attn.q_proj.bias"));
  CHECK(!expected_of(config).contains("model.layers.0.self_attn.o_proj.bias"));
  config.attention_output_bias = true;
  CHECK(expected_of(config).contains("model.layers.0.self_attn.o_proj.bias"));
  CHECK(!expected_of(config).contains("model.layers.0.mlp.up_proj.bias"));
  config.mlp_bias = true;
  for (const char* part : {"gate", "up", "down"})
    CHECK(expected_of(config).contains(std::string("model.layers.0.mlp.") + part + "_proj.bias"));
}

TEST(a_mis_shaped_tensor_is_refused_with_expected_and_found) {
  const auto device = open_cpu();
  Weights weights(*device, tiny_config());
  const std::vector<float> zeros(200 * 200);
  const std::string k = "model.layers.0.self_attn.k_proj.weight";
  const auto write = [&](const std::string& name, int64_t first, int64_t rows, int64_t width) {
    weights.write(name, first, rows, width, DType::kF32, zeros.data());
  };
  CHECK_THROWS_WITH(write("model.layers.3.mlp.up_proj.weight", 0, 1, 48), InvalidArgument,
                    "unknown tensor model.layers.3.mlp.up_proj.weight");
  CHECK_THROWS_WITH(write(k, 0, 33, 48), InvalidArgument, "expected [32, 48], found rows [0, 33)");
  CHECK_THROWS_WITH(write(k, 30, 3, 48), InvalidArgument, "found rows [30, 33)");
  CHECK_THROWS_WITH(write(k, -1, 1, 48), InvalidArgument, "found rows [-1, 0)");
  CHECK_THROWS_WITH(write(k, 0, 1, 47), InvalidArgument, "expected [32, 48], found rows of 47 elements");
  CHECK_THROWS_WITH(write("model.norm.weight", 0, 1, 48), InvalidArgument, "found rows of 48 elements");
  write(k, 0, 2, 48);
  CHECK_THROWS_WITH(write(k, 1, 2, 48), InvalidArgument, "row 1 comes twice");
  CHECK_THROWS_WITH(weights.write(k, 2, 1, 48, DType::kBF16, zeros.data()), InvalidArgument, "was float32");
  CHECK_THROWS_WITH(weights.write(k, 2, 1, 48, DType::kI32, zeros.data()), InvalidArgument, "got int32");
}

TEST(finish_names_the_first_missing_tensors_and_counts_them_all) {
  const auto device = open_cpu();
  Weights weights(*device, tiny_config());
  const std::vector<float> zeros(200 * 200);
  weights.write("model.embed_tokens.weight", 5, 96, 48, DType::kF32, zeros.data());
  weights.write("model.layers.0.input_layernorm.weight", 0, 48, 1, DType::kF32, zeros.data());
  CHECK_THROWS_WITH(weights.finish(), InvalidArgument,
                    "35 of 36 tensors are missing: model.embed_tokens.weight (96 of 101 rows), "
                    "model.layers.0.self_attn.q_proj.weight, ");
  CHECK_THROWS_WITH(weights.finish(), InvalidArgument, ", ...");
  CHECK_THROWS(weights.digest(), InvalidArgument);
  CHECK_THROWS(Decoder(*device, weights), InvalidArgument);
}

TEST(the_digest_is_the_same_for_any_chunks) {
  const std::string digest = digest_of(tiny_config(), 7);
  CHECK_EQ(digest.size(), 64);
  CHECK_EQ(digest_of(tiny_config(), 1), digest);
  CHECK_EQ(digest_of(tiny_config(), 1000), digest);
}

TEST(several_threads_may_write_at_the_same_time) {
  const auto outcome = [](int threads) {
    const auto device = open_cpu();
    auto weights = std::make_unique<Weights>(*device, tiny_config());
    const std::vector<ExpectedTensor> expected = weights->expected();
    std::vector<std::jthread> writers;
    for (int thread = 0; thread < threads; ++thread)
      writers.emplace_back([&, thread] {
        for (const ExpectedTensor& tensor : expected) {
          const int64_t width = tensor.shape.size() == 2 ? tensor.shape[1] : 1;
          for (int64_t row = thread; row < tensor.shape[0]; row += threads) {
            std::vector<float> values(static_cast<size_t>(width));
            for (int64_t i = 0; i < width; ++i)
              values[static_cast<size_t>(i)] = static_cast<float>((row * 31 + i * 7) % 13) / 13 - 0.4f;
            weights->write(tensor.name, row, 1, width, DType::kF32, values.data());
          }
        }
      });
    writers.clear();  // which waits for them
    weights->finish();
    const std::string digest = weights->digest();
    return std::pair(digest,
                     TinyModel(*device, std::move(weights), 16, DType::kF32).prefill(0, random_tokens(20, 1), 20));
  };
  CHECK(outcome(4) == outcome(1));
}

TEST(the_digest_sees_config_dtype_and_bytes) {
  const std::string digest = digest_of(tiny_config(), 7);
  ModelConfig config = tiny_config();
  config.rope_theta = 20000;
  CHECK(digest_of(config, 7) != digest);
  CHECK(digest_of(tiny_config(DType::kBF16), 7) != digest);

  // A bf16 file of zeros, an f32 file of zeros, an f32 file with a single other bit: three models.
  const auto digest_of_file = [](DType dtype, uint32_t first_word) {
    const auto device = open_cpu();
    Weights weights(*device, tiny_config());
    for (const ExpectedTensor& tensor : weights.expected()) {
      std::vector<uint32_t> words(200 * 200);
      if (tensor.name == "lm_head.weight") words[0] = first_word;
      weights.write(tensor.name, 0, tensor.shape[0], tensor.shape.size() == 2 ? tensor.shape[1] : 1, dtype,
                    words.data());
    }
    weights.finish();
    return weights.digest();
  };
  const std::string zeros = digest_of_file(DType::kF32, 0);
  CHECK(digest_of_file(DType::kBF16, 0) != zeros);
  CHECK(digest_of_file(DType::kF32, 1) != zeros);
  CHECK_EQ(digest_of_file(DType::kF32, 0), zeros);
}

TEST(weights_written_anew_lie_where_the_old_ones_did_and_compute_as_fresh_ones) {
  for (const bool tied : {false, true}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      ModelConfig config = tiny_config(dtype);
      config.tie_word_embeddings = tied;
      config.attention_bias = config.mlp_bias = true;
      const auto device = open_cpu();
      const auto made = [&](uint64_t seed) {
        auto weights = std::make_unique<Weights>(*device, config);
        write_random_weights(*weights, seed);
        weights->finish();
        return weights;
      };
      const std::vector<int32_t> prompt = random_tokens(20, 3);
      TinyModel fresh(*device, made(2), 16, dtype);
      TinyModel model(*device, made(1), 16, dtype);
      CHECK(model.prefill(0, prompt, 20) != fresh.prefill(0, prompt, 20));
      const auto memory = [&] {
        std::vector<std::pair<uint64_t, int64_t>> places;
        for (const Allocation& each : device->allocations()) places.emplace_back(each.address, each.bytes);
        return places;
      };
      const auto before = memory();
      model.weights->reopen();
      write_random_weights(*model.weights, 2);
      model.weights->finish();
      CHECK(memory() == before);
      CHECK_EQ(model.weights->digest(), fresh.weights->digest());
      CHECK(model.prefill(1, prompt, 20) == fresh.prefill(1, prompt, 20));
    }
  }
}

TEST(a_load_that_was_broken_off_can_be_begun_again) {
  const auto device = open_cpu();
  TinyModel model(*device, tiny_config(), 16, DType::kF32);
  const std::string digest = model.weights->digest();
  const auto logits = model.prefill(0, random_tokens(20, 3), 20);
  model.weights->reopen();
  const std::vector<float> ones(48 * 101, 1.0f);
  model.weights->write("lm_head.weight", 0, 101, 48, DType::kF32, ones.data());
  CHECK_THROWS_WITH(model.weights->finish(), InvalidArgument, "tensors are missing");
  CHECK_EQ(model.weights->digest(), digest);  // until it is finished
  model.weights->reopen();
  write_test_weights(*model.weights);
  CHECK_EQ(model.weights->digest(), digest);
  CHECK(model.prefill(1, random_tokens(20, 3), 20) == logits);
}

TEST(a_version_makes_another_digest_of_the_same_weights) {
  const auto device = open_cpu();
  const auto digest_of_version = [&](uint64_t version) {
    Weights weights(*device, tiny_config());
    write_random_weights(weights, 1);
    weights.finish(version);
    return weights.digest();
  };
  CHECK(digest_of_version(0) != digest_of_version(1));
  CHECK(digest_of_version(1) != digest_of_version(2));
  CHECK_EQ(digest_of_version(1), digest_of_version(1));
}

TEST(random_weights_depend_on_the_seed_alone) {
  const auto digest_of_seed = [](uint64_t seed) {
    const auto device = open_cpu();
    Weights weights(*device, tiny_config(DType::kBF16));
    write_random_weights(weights, seed);
    weights.finish();
    return weights.digest();
  };
  CHECK_EQ(digest_of_seed(1), digest_of_seed(1));
  CHECK(digest_of_seed(1) != digest_of_seed(2));
}

TEST(every_half_precision_value_widens_exactly) {
  CHECK_EQ(widen_float16(uint16_t{0x3c00}), 1.0f);
  CHECK_EQ(widen_float16(uint16_t{0xc000}), -2.0f);
  CHECK_EQ(widen_float16(uint16_t{0x7bff}), 65504.0f);
  CHECK_EQ(widen_float16(uint16_t{0x0001}), 0x1p-24f);
  CHECK_EQ(widen_float16(uint16_t{0x83ff}), -1023 * 0x1p-24f);
  CHECK_EQ(widen_float16(uint16_t{0x7c00}), INFINITY);
  CHECK(std::isnan(widen_float16(uint16_t{0x7e00})));
  CHECK(std::signbit(widen_float16(uint16_t{0x8000})));
#ifdef __FLT16_MAX__
  for (uint32_t bits = 0; bits < 0x7c00; ++bits)
    CHECK_EQ(widen_float16(static_cast<uint16_t>(bits)),
             static_cast<float>(__builtin_bit_cast(_Float16, static_cast<uint16_t>(bits))));
#endif
}

}  // namespace
}  // namespace rtp_llm
