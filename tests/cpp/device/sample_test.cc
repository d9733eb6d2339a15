#include "device_fixture.h"

#include <map>
#include <set>

#include "device/philox.h"
#include "device/token_rules.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

namespace {

constexpr int kTop = 5;

struct Drawn {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<std::vector<int32_t>> top_tokens;
  std::vector<std::vector<float>> top_logprobs;
  bool operator==(const Drawn&) const = default;
};

// Samples each row of logits with its state, at output positions `positions`.
Drawn draw(Ops& ops, const Owned& logits, const std::vector<SamplingState>& states,
           const std::vector<int32_t>& positions, const Owned* allowed = nullptr, PagedSequences* sequences = nullptr) {
  const auto rows = static_cast<int64_t>(states.size());
  PagedSequences own(static_cast<int>(rows), 16, 16, 1, 16, DType::kF32);
  PagedSequences& all = sequences != nullptr ? *sequences : own;
  std::vector<SampleRow> sample_rows;
  for (int32_t i = 0; i < rows; ++i) {
    all.sampling[static_cast<size_t>(i)] = states[static_cast<size_t>(i)];
    all.output_position.as<int32_t>()[i] = positions[static_cast<size_t>(i)];
    sample_rows.push_back({.slot = i, .row = i});
  }
  const Owned tokens(DType::kI32, {rows}), logprobs(DType::kF32, {rows});
  const Owned top_tokens(DType::kI32, {rows, kTop}), top_logprobs(DType::kF32, {rows, kTop});
  const Owned workspace(DType::kU8, {ops.sample_workspace_bytes(rows, logits.view().shape[1])});
  ops.sample({.logits = logits,
              .step = Step(all.slots, {}, sample_rows),
              .allowed = allowed != nullptr ? allowed->view() : Tensor{},
              .tokens = tokens,
              .logprobs = logprobs,
              .top_tokens = top_tokens,
              .top_logprobs = top_logprobs,
              .workspace = workspace});
  Drawn drawn;
  drawn.tokens.assign(tokens.as<int32_t>(), tokens.as<int32_t>() + rows);
  drawn.logprobs.assign(logprobs.as<float>(), logprobs.as<float>() + rows);
  for (int64_t i = 0; i < rows; ++i) {
    drawn.top_tokens.emplace_back(top_tokens.as<int32_t>() + i * kTop, top_tokens.as<int32_t>() + (i + 1) * kTop);
    drawn.top_logprobs.emplace_back(top_logprobs.as<float>() + i * kTop, top_logprobs.as<float>() + (i + 1) * kTop);
  }
  return drawn;
}

Drawn draw_one(Ops& ops, const std::vector<float>& logits, const SamplingState& state, int position = 0) {
  return draw(ops, floats({1, static_cast<int64_t>(logits.size())}, logits), {state}, {position});
}

// How often each token comes at output positions 0 .. n - 1.
std::map<int32_t, int> histogram(Ops& ops, const std::vector<float>& logits, const SamplingState& state, int n) {
  const auto vocab = static_cast<int64_t>(logits.size());
  const Owned rows(DType::kF32, {n, vocab});
  std::vector<int32_t> positions;
  for (int i = 0; i < n; ++i) {
    std::copy(logits.begin(), logits.end(), rows.as<float>() + i * vocab);
    positions.push_back(i);
  }
  std::map<int32_t, int> counts;
  for (int32_t token : draw(ops, rows, std::vector<SamplingState>(static_cast<size_t>(n), state), positions).tokens)
    ++counts[token];
  return counts;
}

// Sum over tokens of (count - expected)^2 / expected for softmax(logits / temperature) over `kept`.
double chi_square(const std::map<int32_t, int>& counts, const std::vector<float>& logits, const std::set<int32_t>& kept,
                  double temperature, int n) {
  double total = 0, result = 0;
  for (int32_t id : kept) total += std::exp(logits[static_cast<size_t>(id)] / temperature);
  for (int32_t id : kept) {
    const double expected = n * std::exp(logits[static_cast<size_t>(id)] / temperature) / total;
    const auto found = counts.find(id);
    const double apart = (found == counts.end() ? 0 : found->second) - expected;
    result += apart * apart / expected;
  }
  return result;
}

std::set<int32_t> keys(const std::map<int32_t, int>& counts) {
  std::set<int32_t> ids;
  for (const auto& [id, count] : counts) ids.insert(id);
  return ids;
}

// DESIGN's definition in scalar code with libm: argmax of logprob / T + g over `kept`.
int32_t defined_token(const std::vector<float>& logits, const SamplingState& state, uint32_t position) {
  double top = *std::max_element(logits.begin(), logits.end()), sum = 0, best = -1e30;
  for (float x : logits) sum += std::exp(x - top);
  int32_t token = -1;
  for (size_t id = 0; id < logits.size(); ++id) {
    const double u = sampling_uniform(state.seed, static_cast<uint32_t>(id), position, state.choice);
    const double value = (logits[id] - top - std::log(sum)) / state.temperature - std::log(-std::log(u));
    if (value > best) best = value, token = static_cast<int32_t>(id);
  }
  return token;
}

}  // namespace

TEST(greedy_takes_the_highest_and_ties_go_to_the_lowest_id) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    const SamplingState greedy{.temperature = 0};
    CHECK_EQ(draw_one(ops, {1, 3, 2, 3, 0}, greedy).tokens[0], 1);
    std::vector<float> wide(1000, -1.0f);
    wide[999] = wide[500] = wide[37] = 7.0f;
    CHECK_EQ(draw_one(ops, wide, greedy).tokens[0], 37);
    wide[36] = std::nanf("");
    CHECK_EQ(draw_one(ops, wide, greedy).tokens[0], 37);
  });
}

TEST(sampling_stores_token_and_position_in_the_slot) {
  on_each_isa([](const std::string& isa) {
    PagedSequences sequences(2, 16, 16, 1, 16, DType::kF32);
    const Owned logits = floats({2, 4}, {0, 0, 5, 0, 9, 0, 0, 0});
    draw(device_of(isa).ops(), logits, {{.temperature = 0}, {.temperature = 0}}, {0, 6}, nullptr, &sequences);
    CHECK_EQ(sequences.last_token.as<int32_t>()[0], 2);
    CHECK_EQ(sequences.last_token.as<int32_t>()[1], 0);
    CHECK_EQ(sequences.output_position.as<int32_t>()[0], 1);
    CHECK_EQ(sequences.output_position.as<int32_t>()[1], 7);
  });
}

TEST(logprobs_are_the_raw_log_softmax_and_the_top_ones_are_sorted) {
  on_each_isa([](const std::string& isa) {
    const std::vector<float> logits = {1, 3, 2, 3, 0};
    const Drawn drawn =
        draw_one(device_of(isa).ops(), logits,
                 {.temperature = 0, .num_logprobs = 3, .suppress_until = 1, .num_suppressed = 1, .suppressed = {1}});
    const double total = std::log(std::exp(1.0) + 2 * std::exp(3.0) + std::exp(2.0) + 1);
    CHECK_EQ(drawn.tokens[0], 3);  // 1 is suppressed, but reported
    CHECK_NEAR(drawn.logprobs[0], 3 - total, 1e-6);
    CHECK_EQ(drawn.top_tokens[0], std::vector<int32_t>{1, 3, 2, -1, -1});
    CHECK_NEAR(drawn.top_logprobs[0][2], 2 - total, 1e-6);
    CHECK_EQ(draw_one(device_of(isa).ops(), logits, {.temperature = 0}).top_tokens[0], std::vector<int32_t>(kTop, -1));
  });
}

TEST(sampling_follows_its_definition_token_by_token) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    for (float temperature : {0.3f, 1.0f, 3.0f}) {
      for (uint32_t i = 0; i < 60; ++i) {
        const Owned logits = random_tensor(DType::kF32, {1, 777}, i, 4.0f);
        const SamplingState state{.temperature = temperature, .seed = 0x123456789abcdefull + i, .choice = i % 3};
        const std::vector<float> values(logits.as<float>(), logits.as<float>() + 777);
        const int32_t expected = defined_token(values, state, i);
        CHECK_EQ(draw(ops, logits, {state}, {static_cast<int32_t>(i)}).tokens[0], expected);
        SamplingState cut = state;  // a cut that keeps everything takes the other way through the code
        cut.top_k = 776;
        CHECK_EQ(draw(ops, logits, {cut}, {static_cast<int32_t>(i)}).tokens[0], expected);
      }
    }
  });
}

TEST(sampled_frequencies_follow_the_softmax) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    constexpr int kDraws = 20000;
    const std::vector<float> logits = {0.0f, 1.0f, 2.0f, -1.0f, 0.5f};
    for (float temperature : {0.5f, 1.0f, 2.0f}) {
      const auto counts = histogram(ops, logits, {.temperature = temperature, .seed = 11}, kDraws);
      CHECK(chi_square(counts, logits, {0, 1, 2, 3, 4}, temperature, kDraws) < 18.5);  // 4 degrees, p = 0.001
    }
    const auto top3 = histogram(ops, logits, {.top_k = 3, .seed = 12}, kDraws);
    CHECK_EQ(keys(top3), std::set<int32_t>{1, 2, 4});
    CHECK(chi_square(top3, logits, {1, 2, 4}, 1.0, kDraws) < 13.8);
  });
}

// softmax of log(p) is p: the margins are the running sums.
TEST(cuts_keep_the_defined_sets_with_ties_to_the_lowest_id) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    std::vector<float> logits;
    for (double p : {0.1, 0.4, 0.2, 0.1, 0.2}) logits.push_back(static_cast<float>(std::log(p)));
    const auto kept = [&](SamplingState state) { return keys(histogram(ops, logits, state, 600)); };
    using Ids = std::set<int32_t>;
    CHECK_EQ(kept({.top_k = 1}), Ids{1});
    CHECK_EQ(kept({.top_k = 2}), Ids{1, 2});
    CHECK_EQ(kept({.top_k = 4}), Ids{0, 1, 2, 4});
    CHECK_EQ(kept({.top_p = 0.39f}), Ids{1});
    CHECK_EQ(kept({.top_p = 0.5f}), Ids{1, 2});
    CHECK_EQ(kept({.top_p = 0.7f}), Ids{1, 2, 4});
    CHECK_EQ(kept({.top_p = 0.85f}), Ids{0, 1, 2, 4});
    CHECK_EQ(kept({.top_p = 0.6f, .top_k = 2}), Ids{1});  // 0.4 / 0.6 of what top_k keeps
    CHECK_EQ(kept({.min_p = 0.3f}), Ids{1, 2, 4});
    CHECK_EQ(kept({.min_p = 0.6f}), Ids{1});
    CHECK_EQ(kept({}), Ids{0, 1, 2, 3, 4});
  });
}

TEST(masked_and_suppressed_tokens_never_come) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    const Owned logits = random_tensor(DType::kF32, {1, 70}, 1);
    const Owned allowed(DType::kI32, {1, 3});
    allowed.as<int32_t>()[0] = 1 << 5 | 1 << 9;
    allowed.as<int32_t>()[2] = 1 << 2;  // token 66
    std::set<int32_t> seen;
    for (int i = 0; i < 200; ++i) {
      SamplingState state{.temperature = 5.0f, .suppress_until = 100, .num_suppressed = 1, .suppressed = {9}};
      seen.insert(draw(ops, logits, {state}, {i}, &allowed).tokens[0]);
      if (i == 99) CHECK_EQ(seen, std::set<int32_t>{5, 66});
    }
    CHECK_EQ(seen, std::set<int32_t>{5, 9, 66});
    std::fill_n(allowed.as<int32_t>(), 3, 0);
    CHECK_EQ(draw(ops, logits, {SamplingState{}}, {0}, &allowed).tokens[0], -1);
  });
}

TEST(a_draw_depends_on_its_own_row_only) {
  on_each_isa([](const std::string& isa) {
    constexpr int kRows = 33, kVocab = 5000;
    const Owned logits = random_tensor(DType::kF32, {kRows, kVocab}, 1, 3.0f);
    std::vector<SamplingState> states;
    std::vector<int32_t> positions;
    for (int i = 0; i < kRows; ++i) {
      SamplingState state{
          .temperature = i % 4 * 0.5f, .seed = static_cast<uint64_t>(i) << 33 | 5, .num_logprobs = i % kTop};
      if (i % 3 == 0) state.top_p = 0.9f;
      if (i % 5 == 0) state.top_k = 40;
      states.push_back(state);
      positions.push_back(i * 7);
    }
    const Drawn together = draw(device_of(isa, 2).ops(), logits, states, positions);
    for (int i = 0; i < kRows; ++i) {
      const auto at = static_cast<size_t>(i);
      const Owned row(DType::kF32, {1, kVocab});
      std::copy_n(logits.as<float>() + i * kVocab, kVocab, row.as<float>());
      const Drawn alone = draw(device_of(isa).ops(), row, {states[at]}, {positions[at]});
      CHECK_EQ(alone.tokens[0], together.tokens[at]);
      CHECK(alone.logprobs[0] == together.logprobs[at]);
      CHECK(alone.top_tokens[0] == together.top_tokens[at]);
      CHECK(alone.top_logprobs[0] == together.top_logprobs[at]);
    }
  });
}

// Every way through the code: greedy, all tokens kept, and each cut.
const SamplingState kWays[] = {{.temperature = 0},
                               {},
                               {.top_k = 5},
                               {.top_p = 0.9f},
                               {.min_p = 0.1f},
                               {.top_p = 0.9f, .min_p = 0.1f, .top_k = 5},
                               {.temperature = 50.0f, .top_p = 0.5f}};

TEST(a_tiny_temperature_takes_the_highest_whatever_the_cuts_are) {
  on_each_isa([](const std::string& isa) {
    const Owned random = random_tensor(DType::kF32, {1, 1000}, 3, 4.0f);
    std::vector<float> logits(random.as<float>(), random.as<float>() + 1000);
    logits[700] = 30.0f;
    for (SamplingState state : kWays)
      for (const float temperature : {1e-45f, 1e-40f, 1e-38f, 1e-20f, 1e-5f}) {
        state.temperature = temperature;
        CHECK_EQ(draw_one(device_of(isa).ops(), logits, state).tokens[0], 700);
      }
  });
}

TEST(an_infinite_logit_has_all_the_probability_whatever_the_cuts_are) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    const Owned random = random_tensor(DType::kF32, {1, 1000}, 3, 4.0f);
    std::vector<float> logits(random.as<float>(), random.as<float>() + 1000);
    logits[17] = std::nanf("");
    logits[18] = -INFINITY;
    logits[300] = INFINITY;
    for (SamplingState state : kWays) {
      state.num_logprobs = 3;
      const Drawn one = draw_one(ops, logits, state);
      CHECK_EQ(one.tokens[0], 300);
      CHECK_EQ(one.logprobs[0], 0.0f);
      CHECK_EQ(one.top_tokens[0], std::vector<int32_t>{300, -1, -1, -1, -1});
      CHECK_EQ(one.top_logprobs[0][0], 0.0f);
    }
    logits[999] = INFINITY;
    const Drawn two = draw_one(ops, logits, {.num_logprobs = 3});
    CHECK_EQ(two.tokens[0], 300);
    CHECK_NEAR(two.logprobs[0], -std::log(2.0), 1e-6);
    CHECK_EQ(two.top_tokens[0], std::vector<int32_t>{300, 999, -1, -1, -1});
    // What a mask leaves has no probability, and comes.
    const Drawn masked = draw_one(
        ops, logits,
        {.temperature = 0, .num_logprobs = 3, .suppress_until = 1, .num_suppressed = 2, .suppressed = {300, 999}});
    CHECK(masked.tokens[0] != 300 && masked.tokens[0] != 999 && masked.tokens[0] >= 0);
    CHECK_EQ(masked.logprobs[0], -INFINITY);
  });
}

TEST(a_row_without_a_number_gives_no_token_and_one_with_one_gives_it) {
  on_each_isa([](const std::string& isa) {
    for (const float nothing : {std::nanf(""), -INFINITY}) {
      std::vector<float> logits(1000, nothing);
      for (const SamplingState& state : kWays) CHECK_EQ(draw_one(device_of(isa).ops(), logits, state).tokens[0], -1);
      logits[444] = -3e38f;
      for (const SamplingState& state : kWays) CHECK_EQ(draw_one(device_of(isa).ops(), logits, state).tokens[0], 444);
    }
  });
}

// ---- What is said of single tokens

namespace {

struct TokenRules {
  std::vector<TokenBias> biases{};
  std::vector<int32_t> allowed{}, prompt{}, output{};

  std::vector<int32_t> words() const {
    std::vector<int32_t> words;
    for (const TokenBias& each : biases) {
      words.push_back(each.token);
      words.push_back(std::bit_cast<int32_t>(each.bias));
    }
    for (const auto* ids : {&allowed, &prompt, &output}) words.insert(words.end(), ids->begin(), ids->end());
    return words;
  }
};

// Slots with room for token words, and the ops that read them.
struct Ruled {
  Ruled(Ops& ops, int num_slots, int64_t vocab)
      : ops(ops),
        vocab(vocab),
        sequences(num_slots, 16, 16, 1, 16, DType::kF32),
        token_words(DType::kI32, {num_slots, vocab}),
        biases(static_cast<size_t>(num_slots * kMaxTokenBiases)) {
    sequences.slots.token_words = token_words;
    sequences.slots.biases = biases.data();
  }
  void bind(int32_t slot, const TokenRules& rules, SamplingState state) {
    state.has_token_words = 1;
    state.num_biases = static_cast<int32_t>(rules.biases.size());
    // Behind other slots' words.
    std::vector<int32_t> words = {-1, -1};
    const std::vector<int32_t> own = rules.words();
    words.insert(words.end(), own.begin(), own.end());
    const SlotUpdate update{.slot = slot,
                            .binds = 1,
                            .first_word = 2,
                            .num_allowed = static_cast<int32_t>(rules.allowed.size()),
                            .num_prompt = static_cast<int32_t>(rules.prompt.size()),
                            .num_output = static_cast<int32_t>(rules.output.size()),
                            .sampling = state};
    ops.update_slots({.slots = &sequences.slots, .updates = std::span(&update, 1), .words = words});
  }
  Drawn draw_all(const Owned& logits, int position = 0) {
    const auto rows = static_cast<size_t>(logits.view().shape[0]);
    const std::vector<SamplingState> states(sequences.sampling.begin(),
                                            sequences.sampling.begin() + static_cast<int64_t>(rows));
    return draw(ops, logits, states, std::vector<int32_t>(rows, position), nullptr, &sequences);
  }
  uint32_t word(int32_t slot, int32_t token) const { return token_words.as<uint32_t>()[slot * vocab + token]; }

  Ops& ops;
  int64_t vocab;
  PagedSequences sequences;
  Owned token_words;
  std::vector<TokenBias> biases;
};

}  // namespace

TEST(a_ruled_logit_is_barred_biased_and_penalized_in_this_order) {
  const TokenBias biases[] = {{3, 1.5f}, {5, -2.0f}, {9, 0.25f}};
  const SamplingState state{
      .num_biases = 3, .repetition_penalty = 2.0f, .frequency_penalty = 0.5f, .presence_penalty = 1.0f};
  const auto ruled = [&](float logit, int32_t token, uint32_t word) {
    return ruled_logit(logit, token, word, state, biases);
  };
  CHECK_EQ(ruled(4.0f, 5, 0), 4.0f);
  CHECK_EQ(ruled(4.0f, 5, kTokenBarred | kTokenBiased | 7), -INFINITY);
  CHECK_EQ(ruled(4.0f, 3, kTokenBiased), 5.5f);
  CHECK_EQ(ruled(4.0f, 5, kTokenBiased), 2.0f);
  CHECK_EQ(ruled(4.0f, 9, kTokenBiased), 4.25f);
  CHECK_EQ(ruled(4.0f, 5, kTokenInPrompt), 2.0f);
  CHECK_EQ(ruled(-4.0f, 5, kTokenInPrompt), -8.0f);
  CHECK_EQ(ruled(0.0f, 5, kTokenInPrompt), 0.0f);
  CHECK_EQ(ruled(4.0f, 5, 3), 4.0f / 2 - 3 * 0.5f - 1);
  CHECK_EQ(ruled(1.0f, 5, kTokenBiased | kTokenInPrompt | 1), (1.0f - 2) * 2 - 0.5f - 1);  // biased, then penalized
  // A number stays one, and what is none stays none.
  const float most = std::numeric_limits<float>::max();
  SamplingState extreme{.repetition_penalty = most};
  CHECK_EQ(penalized(-2.0f, kTokenInPrompt, extreme), -most);
  extreme.repetition_penalty = std::numeric_limits<float>::min();
  CHECK_EQ(penalized(1e9f, 1, extreme), most);
  CHECK_EQ(penalized(INFINITY, 1, state), INFINITY);
}

TEST(only_allowed_tokens_come_and_a_bias_moves_the_choice_but_no_logprob) {
  on_each_isa([](const std::string& isa) {
    const std::vector<float> values = {1, 3, 2, 3, 0};
    const Owned logits = floats({1, 5}, values);
    const SamplingState greedy{.temperature = 0, .num_logprobs = 2};
    const double total = std::log(std::exp(1.0) + 2 * std::exp(3.0) + std::exp(2.0) + 1);
    const auto chosen = [&](const TokenRules& rules, SamplingState state) {
      Ruled ruled(device_of(isa).ops(), 1, 5);
      ruled.bind(0, rules, state);
      const Drawn drawn = ruled.draw_all(logits);
      CHECK_NEAR(drawn.logprobs[0], values[static_cast<size_t>(drawn.tokens[0])] - total, 1e-6);
      CHECK_EQ(drawn.top_tokens[0], std::vector<int32_t>{1, 3, -1, -1, -1});
      return drawn.tokens[0];
    };
    CHECK_EQ(chosen({.allowed = {4, 0, 4}}, greedy), 0);
    CHECK_EQ(chosen({.allowed = {4}}, {.temperature = 1, .seed = 3, .num_logprobs = 2}), 4);
    CHECK_EQ(chosen({.biases = {{0, 2.5f}}}, greedy), 0);
    CHECK_EQ(chosen({.biases = {{1, -0.5f}}}, greedy), 3);
    CHECK_EQ(chosen({.biases = {{0, 2.5f}}, .allowed = {1, 2}}, greedy), 1);  // what may not come gains nothing
    SamplingState suppressing = greedy;
    suppressing.suppress_until = suppressing.num_suppressed = 1;
    suppressing.suppressed[0] = 1;
    CHECK_EQ(chosen({.biases = {{1, 100.0f}}}, suppressing), 3);
  });
}

TEST(penalties_count_each_token_as_it_is_chosen) {
  on_each_isa([](const std::string& isa) {
    Ruled ruled(device_of(isa).ops(), 2, 4);
    const Owned logits = floats({2, 4}, {5, 4, 3, 0, 5, 4, 3, 0});
    ruled.bind(0, {.prompt = {1, 1, 3}, .output = {2}}, {.temperature = 0, .frequency_penalty = 0.75f});
    ruled.bind(1, {}, {.temperature = 0, .presence_penalty = 1.5f});
    std::vector<int32_t> first, second;
    for (int position = 0; position < 6; ++position) {
      const Drawn drawn = ruled.draw_all(logits, position);
      first.push_back(drawn.tokens[0]);
      second.push_back(drawn.tokens[1]);
    }
    // 5, 4.25, 3.5, …; 4, 3.25, …; 2.25 from the start. The prompt's tokens lose nothing.
    CHECK_EQ(first, std::vector<int32_t>({0, 0, 1, 0, 1, 0}));
    CHECK_EQ(second, std::vector<int32_t>({0, 1, 0, 0, 0, 0}));  // 3.5 against 4, then against 2.5
    CHECK_EQ(ruled.word(0, 0), 4u);
    CHECK_EQ(ruled.word(0, 1), kTokenInPrompt | 2u);
    CHECK_EQ(ruled.word(0, 2), 1u);
    CHECK_EQ(ruled.word(1, 1), 1u);
    // A new owner has nothing of the old one.
    ruled.bind(0, {.allowed = {2, 3}, .prompt = {2}}, {.temperature = 0, .repetition_penalty = 1.5f});
    CHECK_EQ(ruled.word(0, 0), kTokenBarred);
    CHECK_EQ(ruled.word(0, 2), kTokenInPrompt);
    CHECK_EQ(ruled.draw_all(floats({1, 4}, {5, 4, 3, 2.5f})).tokens[0], 3);
  });
}

TEST(rules_choose_as_logits_that_were_changed_before_would) {
  constexpr int64_t kVocab = 1037;
  constexpr int kRows = 12;
  on_each_isa([](const std::string& isa) {
    std::mt19937 random(5);
    Ruled ruled(device_of(isa).ops(), kRows, kVocab);
    const Owned logits = random_tensor(DType::kF32, {kRows, kVocab}, 11, 3.0f);
    const Owned changed(DType::kF32, {kRows, kVocab});
    std::vector<SamplingState> plain;
    for (int32_t slot = 0; slot < kRows; ++slot) {
      TokenRules rules;
      std::map<int32_t, float> biases;
      std::vector<int> count(kVocab), in_prompt(kVocab), allowed(kVocab, slot % 3 != 0);
      for (int i = 0; i < 100; ++i) biases[static_cast<int32_t>(random() % kVocab)] = static_cast<float>(i % 9) - 4;
      for (const auto& [token, bias] : biases) rules.biases.push_back({token, bias});
      for (int i = 0; i < 300; ++i) {
        rules.prompt.push_back(static_cast<int32_t>(random() % kVocab));
        rules.output.push_back(static_cast<int32_t>(random() % 80));
        in_prompt[static_cast<size_t>(rules.prompt.back())] = 1;
        ++count[static_cast<size_t>(rules.output.back())];
        if (slot % 3 == 0) rules.allowed.push_back(static_cast<int32_t>(random() % kVocab));
        if (slot % 3 == 0) allowed[static_cast<size_t>(rules.allowed.back())] = 1;
      }
      SamplingState state{.temperature = slot % 2 == 0 ? 0.0f : 0.9f, .seed = random(), .num_logprobs = 0};
      if (slot % 4 == 1) state.top_k = 30, state.top_p = 0.9f;
      plain.push_back(state);
      state.repetition_penalty = 1.2f;
      state.frequency_penalty = 0.1f;
      state.presence_penalty = 0.3f;
      ruled.bind(slot, rules, state);
      for (int32_t id = 0; id < kVocab; ++id) {
        const auto at = static_cast<size_t>(id);
        float x = logits.as<float>()[slot * kVocab + id];
        if (biases.contains(id)) x += biases[id];
        if (in_prompt[at] || count[at] > 0) x = x > 0 ? x / 1.2f : x * 1.2f;
        if (count[at] > 0) x = x - 0.1f * static_cast<float>(count[at]) - 0.3f;
        changed.as<float>()[slot * kVocab + id] = allowed[at] ? x : -INFINITY;
      }
    }
    const Drawn ours = ruled.draw_all(logits, 3);
    CHECK_EQ(ours.tokens, draw(device_of(isa).ops(), changed, plain, std::vector<int32_t>(kRows, 3)).tokens);
    CHECK(ours.tokens != draw(device_of(isa).ops(), logits, plain, std::vector<int32_t>(kRows, 3)).tokens);
  });
}

TEST(what_is_said_of_tokens_must_be_in_range) {
  on_each_isa([](const std::string& isa) {
    Ruled ruled(device_of(isa).ops(), 1, 8);
    CHECK_THROWS_WITH(ruled.bind(0, {.allowed = {8}}, {}), InvalidArgument,
                      "token 8 of slot 0 out of range, the vocabulary has 8");
    CHECK_THROWS_WITH(ruled.bind(0, {.prompt = {-1}}, {}), InvalidArgument, "token -1 of slot 0");
    const SlotUpdate more{.binds = 1, .num_prompt = 3, .sampling = {.has_token_words = 1}};
    const int32_t words[] = {1, 2};
    CHECK_THROWS_WITH(
        ruled.ops.update_slots({.slots = &ruled.sequences.slots, .updates = std::span(&more, 1), .words = words}),
        InvalidArgument, "words from 0 on, 3 of them, there are 2");
    PagedSequences bare(1, 16, 16, 1, 16, DType::kF32);
    CHECK_THROWS_WITH(ruled.ops.update_slots({.slots = &bare.slots, .updates = std::span(&more, 1), .words = words}),
                      InvalidArgument, "slot 0 has token words, there is no room for any");
    const SamplingState state{.has_token_words = 1};
    CHECK_THROWS_WITH(draw(ruled.ops, floats({1, 8}, std::vector<float>(8)), {state}, {0}), InvalidArgument,
                      "slot 0 has token words, of 0 tokens");
  });
}
