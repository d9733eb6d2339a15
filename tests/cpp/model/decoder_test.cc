// The whole model, bit for bit: a row's logits don't depend on how the step around it was made.

#include "model/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "check.h"
#include "model/scorer.h"
#include "tiny_model.h"

namespace rtp_llm {
namespace {

using testing::open_cpu;
using testing::random_tokens;
using testing::tiny_config;
using testing::TinyModel;
using Rows = std::vector<std::vector<float>>;

// What every variant is run in: model and KV in f32, and in bf16.
const DType kTypes[] = {DType::kF32, DType::kBF16};

Rows reference(const std::vector<int32_t>& tokens, DType dtype) {
  const auto device = open_cpu();
  return TinyModel(*device, tiny_config(dtype), 16, dtype).prefill(0, tokens, 1000);
}

TEST(logits_are_finite_and_differ_between_positions) {
  const Rows rows = reference(random_tokens(20, 1), DType::kF32);
  for (const auto& row : rows)
    for (float value : row) CHECK(std::isfinite(value));
  CHECK(rows[3] != rows[4]);
}

TEST(a_later_token_changes_no_earlier_row) {
  std::vector<int32_t> tokens = random_tokens(40, 2);
  const Rows before = reference(tokens, DType::kF32);
  tokens[30] = (tokens[30] + 1) % 101;
  const Rows after = reference(tokens, DType::kF32);
  for (int i = 0; i < 30; ++i) CHECK(before[i] == after[i]);
  CHECK(before[30] != after[30]);
}

TEST(any_chunking_gives_the_same_bits) {
  const std::vector<int32_t> tokens = random_tokens(150, 3);
  for (DType dtype : kTypes) {
    const Rows whole = reference(tokens, dtype);
    const auto device = open_cpu();
    TinyModel model(*device, tiny_config(dtype), 16, dtype);
    int slot = 0;
    for (size_t chunk : {1, 7, 64}) CHECK(model.prefill(slot++, tokens, chunk) == whole);
  }
}

TEST(any_block_size_gives_the_same_bits) {
  const std::vector<int32_t> tokens = random_tokens(150, 4);
  for (DType dtype : kTypes) {
    const Rows whole = reference(tokens, dtype);
    for (int block_tokens : {8, 64, 5}) {
      const auto device = open_cpu();
      TinyModel model(*device, tiny_config(dtype), block_tokens, dtype);
      CHECK(model.prefill(1, tokens, 33) == whole);
    }
  }
}

TEST(any_number_of_threads_gives_the_same_bits) {
  const std::vector<int32_t> tokens = random_tokens(100, 5);
  for (DType dtype : kTypes) {
    const Rows whole = reference(tokens, dtype);
    const auto device = open_cpu(2);
    CHECK(TinyModel(*device, tiny_config(dtype), 16, dtype).prefill(0, tokens, 64) == whole);
  }
}

TEST(a_row_is_the_same_in_any_batch_in_any_order_and_in_both_forms) {
  const std::vector<int32_t> a = random_tokens(37, 6), b = random_tokens(5, 7), c = random_tokens(60, 8);
  for (DType dtype : kTypes) {
    const Rows alone_a = reference(a, dtype), alone_b = reference(b, dtype), alone_c = reference(c, dtype);
    const auto device = open_cpu();
    TinyModel model(*device, tiny_config(dtype), 16, dtype);
    const auto head = [](const std::vector<int32_t>& tokens, size_t count) {
      return std::vector<int32_t>(tokens.begin(), tokens.begin() + count);
    };
    const Rows first = model.step({{.slot = 2, .tokens = head(c, 59)}, {.slot = 0, .tokens = head(a, 36)}});
    for (int i = 0; i < 59; ++i) CHECK(first[i] == alone_c[i]);
    for (int i = 0; i < 36; ++i) CHECK(first[59 + i] == alone_a[i]);
    // A mixed step: two decode rows around a prefill.
    const Rows mixed = model.step({{.slot = 0, .tokens = {a[36]}, .form = Form::kDecode},
                                   {.slot = 1, .tokens = b},
                                   {.slot = 2, .tokens = {c[59]}, .form = Form::kDecode}});
    CHECK(mixed[0] == alone_a[36]);
    for (int i = 0; i < 5; ++i) CHECK(mixed[1 + i] == alone_b[i]);
    CHECK(mixed[6] == alone_c[59]);
  }
}

TEST(a_token_from_its_slot_is_the_token) {
  const std::vector<int32_t> tokens = random_tokens(10, 9);
  const Rows whole = reference(tokens, DType::kF32);
  const auto device = open_cpu();
  TinyModel model(*device, tiny_config(), 16, DType::kF32);
  model.prefill(3, {tokens.begin(), tokens.end() - 1}, 1000);
  model.last[3] = tokens.back();
  CHECK(model.step({{.slot = 3, .tokens = {kTokenFromSlot}, .form = Form::kDecode}})[0] == whole.back());
}

TEST(forward_advances_each_slot_by_its_rows) {
  const auto device = open_cpu();
  TinyModel model(*device, tiny_config(), 16, DType::kF32);
  model.step({{.slot = 1, .tokens = random_tokens(5, 1)}, {.slot = 3, .tokens = random_tokens(2, 1)}});
  CHECK_EQ(model.lens, std::vector<int32_t>({0, 5, 0, 2}));
}

TEST(layer_groups_are_announced_in_order_when_their_kv_is_stored) {
  const std::vector<int32_t> tokens = random_tokens(9, 10);
  const auto device = open_cpu();
  TinyModel whole(*device, tiny_config(), 16, DType::kF32), model(*device, tiny_config(), 16, DType::kF32);
  whole.step({{.slot = 0, .tokens = tokens}});
  const KvGroup& group = whole.layout.groups[0];
  const int64_t block = whole.host_tables[0] * group.block_bytes();
  std::vector<std::pair<int, int>> groups;
  const auto on_layers = [&](int first, int count) {
    groups.emplace_back(first, count);
    const int64_t offset = block + group.layer_offset(first);
    CHECK(std::memcmp(static_cast<uint8_t*>(model.pool.data()) + offset,
                      static_cast<uint8_t*>(whole.pool.data()) + offset, count * group.layer_bytes()) == 0);
  };
  model.step({{.slot = 0, .tokens = tokens}}, on_layers, 2);
  CHECK(groups == std::vector<std::pair<int, int>>({{0, 2}, {2, 1}}));
}

TEST(tied_embeddings_and_biases_and_llama_rope_run_with_the_same_bits_in_chunks) {
  for (DType dtype : kTypes) {
    ModelConfig config = tiny_config(dtype);
    config.tie_word_embeddings = config.attention_bias = config.attention_output_bias = config.mlp_bias = true;
    config.qk_norm = false;
    config.rope_scaling = RopeScaling::kLlama3;
    config.rope_factor = 8;
    config.rope_original_max_position = 64;
    const auto device = open_cpu();
    TinyModel model(*device, config, 16, dtype);
    const std::vector<int32_t> tokens = random_tokens(100, 11);
    CHECK(model.prefill(0, tokens, 1000) == model.prefill(1, tokens, 9));
  }
}

TEST(a_step_that_does_not_fit_is_refused) {
  const auto device = open_cpu();
  TinyModel model(*device, tiny_config(), 16, DType::kF32);
  CHECK_THROWS_WITH(model.step({{.slot = 0, .tokens = random_tokens(161, 1)}}), InvalidArgument,
                    "a step of 161 rows, allocated are 160");
  CHECK_THROWS_WITH(model.step({}), InvalidArgument, "a step of 0 rows");
  CHECK_THROWS_WITH(model.step({{.slot = 0, .tokens = {}}, {.slot = 1, .tokens = {1}}}), InvalidArgument,
                    "a step of 0 rows");
  Decoder fresh(*device, *model.weights);
  CHECK_THROWS_WITH(fresh.allocate(1, 1, 1025), InvalidArgument, "max_positions must be from 1 to 1024, got 1025");
  CHECK_THROWS_WITH(fresh.forward({}, model.layout, model.pool.data(), 1, 1, {}), InvalidArgument,
                    "forward before allocate");
}

TEST(a_scorer_gives_the_models_logits) {
  const std::vector<int32_t> tokens = random_tokens(70, 12);
  const Rows whole = reference(tokens, DType::kF32);
  const auto device = open_cpu();
  Weights weights(*device, tiny_config());
  testing::write_test_weights(weights);
  Decoder decoder(*device, weights);
  Scorer scorer(*device, decoder, {.max_tokens = 70, .block_tokens = 8, .chunk_tokens = 32});
  for (int round = 0; round < 2; ++round) {
    const std::vector<float> logits = scorer.logits(tokens);
    for (size_t i = 0; i < tokens.size(); ++i)
      CHECK(std::equal(whole[i].begin(), whole[i].end(), logits.begin() + i * 101));
  }
  CHECK_THROWS_WITH(scorer.logits(std::vector<int32_t>{101}), InvalidArgument, "token id 101 out of range");
  CHECK_THROWS_WITH(scorer.logits(random_tokens(71, 1)), InvalidArgument, "1 to 70 tokens, got 71");
  CHECK_THROWS(scorer.logits({}), InvalidArgument);
}

}  // namespace
}  // namespace rtp_llm
