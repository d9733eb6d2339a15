// Rig: a tiny random model and engines on it, as the engine's tests need them.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "device/device.h"
#include "engine/engine.h"
#include "model/decoder.h"
#include "model/weights.h"

namespace rtp_llm::testing {

inline constexpr int kVocab = 101;
inline constexpr int kLayers = 3;

inline ModelConfig rig_model(DType dtype) {
  return {.architecture = "Qwen3ForCausalLM",
          .vocab_size = kVocab,
          .hidden_size = 48,
          .intermediate_size = 80,
          .num_hidden_layers = kLayers,
          .num_attention_heads = 4,
          .num_key_value_heads = 2,
          .head_dim = 16,
          .qk_norm = true,
          .max_position_embeddings = 1024,
          .dtype = dtype};
}

// Large enough that every layer matters: the tokens of two prompts differ. After `nan_token` no logit is a number.
inline void write_rig_weights(Weights& weights, std::optional<int> nan_token) {
  for (const ExpectedTensor& tensor : weights.expected()) {
    std::mt19937 random(static_cast<unsigned>(std::hash<std::string>{}(tensor.name)));
    std::normal_distribution<float> normal;
    const bool matrix = tensor.shape.size() == 2;
    const int64_t width = matrix ? tensor.shape[1] : 1;
    std::vector<float> values(tensor.shape[0] * width);
    for (float& value : values) value = matrix ? 0.2f * normal(random) : 1.0f + 0.1f * normal(random);
    if (nan_token && tensor.name == "model.embed_tokens.weight")
      std::fill_n(values.begin() + *nan_token * width, width, std::numeric_limits<float>::quiet_NaN());
    weights.write(tensor.name, 0, tensor.shape[0], width, DType::kF32, values.data());
  }
  weights.finish();
}

inline std::vector<int32_t> random_tokens(int count, int seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % kVocab);
  return tokens;
}

// RTP_TEST_BACKEND=cuda runs the engine's tests on a GPU.
inline std::string test_backend() {
  const char* given = std::getenv("RTP_TEST_BACKEND");
  return given == nullptr || *given == '\0' ? "cpu" : given;
}

// The types that the backend computes in.
inline std::vector<DType> test_types() {
  return test_backend() == "cuda" ? std::vector{DType::kBF16} : std::vector{DType::kF32, DType::kBF16};
}

// Smaller than the rig's blocks where the backend has such (a GPU's are at least 16 tokens), else another size.
inline int small_block() { return test_backend() == "cuda" ? 32 : 8; }

inline RequestKey key_of(uint64_t request) { return {.router_epoch = 7, .request = request}; }

// An answer as it came out, compared by bits.
struct Answer {
  std::vector<int32_t> tokens;
  std::vector<uint32_t> logprob_bits;
  std::vector<std::vector<std::pair<int32_t, uint32_t>>> top;
  int first_position = -1;
  int cached = 0;
  FinishReason finish = FinishReason::kNone;

  bool operator==(const Answer& other) const {
    return tokens == other.tokens && logprob_bits == other.logprob_bits && top == other.top && finish == other.finish;
  }
};

inline uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }

// What a sender has sampled, as its listener hears it.
struct Prefilled {
  int32_t token;
  FinishReason finish;
  float logprob;
  std::vector<std::pair<int32_t, float>> top_logprobs;

  Answer answer(size_t position) const {
    Answer answer{.tokens = {token},
                  .logprob_bits = {bits_of(logprob)},
                  .top = {{}},
                  .first_position = static_cast<int>(position),
                  .finish = finish};
    for (const auto& [id, value] : top_logprobs) answer.top[0].emplace_back(id, bits_of(value));
    return answer;
  }
};

// Gathers what engines say, on their threads, and waits for it.
class Ear : public EngineListener {
 public:
  struct Scheduled {
    std::vector<int32_t> blocks;
    int tokens, cached_tokens;
  };
  void on_scheduled(const RequestKey& key, std::vector<int32_t> blocks, int prompt, int cached) override {
    note([&] { scheduled[key] = {std::move(blocks), prompt, cached}; });
  }
  void on_layers_computed(const ComputedLayers& piece) override {
    if (at_layers) at_layers();
    note([&] { pieces[piece.key].push_back(piece); });
  }
  void on_prefilled(const RequestKey& key, int32_t token, float logprob,
                    std::vector<std::pair<int32_t, float>> top_logprobs, FinishReason finish) override {
    note([&] { prefilled[key] = {token, finish, logprob, std::move(top_logprobs)}; });
  }
  void on_finished(const RequestKey& key, FinishReason finish) override {
    note([&] { finished[key] = finish; });
  }
  void on_failed(const std::string& message) override {
    note([&] { failed = message; });
  }
  // Blocks until `holds()`, which reads this object, is true.
  template <class Condition>
  void wait(Condition holds) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, holds);
  }
  template <class Change>
  void note(Change change) {
    {
      std::lock_guard lock(mutex_);
      change();
    }
    changed_.notify_all();
  }

  // Called on the engine thread at every on_layers_computed, before it is noted. Set before the start.
  std::function<void()> at_layers;
  std::map<RequestKey, Scheduled> scheduled;
  std::map<RequestKey, std::vector<ComputedLayers>> pieces;
  std::map<RequestKey, Prefilled> prefilled;
  std::map<RequestKey, FinishReason> finished;
  std::string failed;
  bool outputs = false;  // there are some

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
};

struct RigOptions {
  DType dtype = test_types().front();
  int num_threads = 1;
  std::optional<int> nan_token{};  // a token after which no logit is a number
  bool queued = false;             // the device runs behind the host
  uint64_t delay_seed = 0;
  EngineConfig engine = {.max_num_batched_tokens = 64,
                         .max_num_seqs = 8,
                         .max_model_len = 256,
                         .block_tokens = 16,
                         .num_kv_blocks = 200,
                         .layers_per_message = 2};
};

class Rig {
 public:
  explicit Rig(RigOptions options = {}) {
    Dl_info info{};
    check(dladdr(reinterpret_cast<void*>(&supported_isas), &info) != 0, "librtp_core.so not found");
    device = open_device(
        test_backend(),
        {.num_threads = options.num_threads, .queued = options.queued, .queue_delay_seed = options.delay_seed},
        std::filesystem::path(info.dli_fname).parent_path().string());
    weights = std::make_unique<Weights>(*device, rig_model(options.dtype));
    write_rig_weights(*weights, options.nan_token);
    decoder = std::make_unique<Decoder>(*device, *weights);
    options.engine.kv_dtype = options.dtype;
    engine = std::make_unique<Engine>(*device, *decoder, options.engine);
    engine->set_listener(&ear);
    engine->set_output_notify([this] {
      if (at_outputs) std::exchange(at_outputs, nullptr)();
      ear.note([this] { ear.outputs = true; });
    });
  }
  ~Rig() { engine->stop(); }

  // Adds all, starts the engine if it isn't, and returns the answers when all are over.
  std::vector<Answer> run(const std::vector<SequenceSpec>& specs) {
    for (const SequenceSpec& spec : specs) engine->add(spec, Role::kAlone);
    start();
    std::vector<Answer> answers;
    for (const SequenceSpec& spec : specs) answers.push_back(wait_for(spec.key));
    return answers;
  }
  // Nothing is left. What a launched step may still touch gets the time to end.
  void check_idle() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(120);
    while (device->runs_behind() && std::chrono::steady_clock::now() < deadline) {
      try {
        return engine->check_idle();
      } catch (const Error&) {
        std::this_thread::yield();
      }
    }
    engine->check_idle();
  }
  Answer run_one(const SequenceSpec& spec) { return run({spec}).front(); }
  void start() {
    if (!started_) engine->start();
    started_ = true;
  }
  // Until the sequence's last token (finish set) is there.
  Answer wait_for(const RequestKey& key) {
    collect_until([&] { return answers[key].finish != FinishReason::kNone; });
    return answers[key];
  }
  void wait_for_tokens(const RequestKey& key, size_t count) {
    collect_until([&] { return answers[key].tokens.size() >= count; });
  }
  template <class Condition>
  void collect_until(Condition holds) {
    while (!holds()) {
      ear.wait([&] { return ear.outputs; });
      ear.note([&] { ear.outputs = false; });
      if (const auto failure = engine->failure()) throw Error("engine failed: " + *failure);
      take(engine->take_outputs());
    }
  }
  void take(const TokenColumns& columns) {
    started.insert(started.end(), columns.started.begin(), columns.started.end());
    auto reported = columns.top_logprobs.begin();
    for (size_t i = 0; i < columns.key.size(); ++i) {
      Answer& answer = answers[columns.key[i]];
      if (answer.first_position < 0) {
        answer.first_position = columns.position[i];
        answer.cached = columns.num_cached_tokens[i];
      }
      const size_t expected = answer.first_position + answer.tokens.size();
      check(static_cast<size_t>(columns.position[i]) == expected, "position ", columns.position[i], " after ",
            expected);
      answer.tokens.push_back(columns.token[i]);
      answer.logprob_bits.push_back(bits_of(columns.logprob[i]));
      auto& top = answer.top.emplace_back();
      for (int j = 0; j < columns.num_top_logprobs[i]; ++j, ++reported)
        top.emplace_back(reported->first, bits_of(reported->second));
      answer.finish = columns.finish[i];
    }
  }

  std::function<void()> at_outputs;  // called once, on the engine thread, when there are first outputs
  Ear ear;
  std::map<RequestKey, Answer> answers;
  std::vector<RequestKey> started;  // solo ones, in order
  std::unique_ptr<Device> device;
  std::unique_ptr<Weights> weights;
  std::unique_ptr<Decoder> decoder;
  std::unique_ptr<Engine> engine;

 private:
  bool started_ = false;
};

// Four requests of five ask for something about single tokens: for penalties, biases, allowed tokens, or all three.
inline void add_token_rules(SamplingParams& sampling, uint64_t request) {
  const uint64_t kind = request % 5;
  if (kind == 1 || kind == 4) {
    sampling.repetition_penalty = 1.3f;
    sampling.presence_penalty = 0.4f;
    sampling.frequency_penalty = -0.3f;  // what has come once comes again
  }
  for (int32_t id = 0; (kind == 2 || kind == 4) && id < kVocab; id += 4)
    sampling.logit_bias[id] = static_cast<float>(id % 7) - 3.0f;
  for (int32_t id = 0; (kind == 3 || kind == 4) && id < 3 * kVocab; id += 5)
    sampling.allowed_token_ids.push_back(id % kVocab);  // three fifths, in no order
}

// Seeded sampling with logprobs: bits that would show any difference.
inline SequenceSpec spec_of(uint64_t request, std::vector<int32_t> prompt, int max_tokens = 20) {
  SequenceSpec spec;
  spec.key = key_of(request);
  spec.prompt = std::move(prompt);
  spec.sampling.temperature = request % 3 == 0 ? 0.0f : 1.0f;
  spec.sampling.top_p = 0.95f;
  spec.sampling.seed = 1000 + request;
  spec.sampling.max_tokens = max_tokens;
  spec.sampling.logprobs = 3;
  add_token_rules(spec.sampling, request);
  return spec;
}

}  // namespace rtp_llm::testing
