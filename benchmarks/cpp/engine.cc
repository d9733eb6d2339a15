// engine DEVICE SHAPE: the whole engine on random weights of a model's shape against this machine, in one run.
//
//   build/…/benchmarks/engine cuda qwen3-8b [decode=1,8,32] [prefill=512,2048] [saturated=2048] [context=1024]
//   [steps=128]
//
// Decode: B prompts of `context` tokens each, then `steps` steps in which all of them decode; a step's time is from one
// publication of B tokens to the next. Its limit: the weights that a token reads and the KV of all contexts (mean over
// the steps), at the read rate measured in this run. Prefill: from add() to the first token, one prompt at a time.
// Saturated: many prompts of one length at once, prompt tokens a second. Prints one JSON object a line.
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "device/device.h"
#include "engine/engine.h"
#include "model/decoder.h"
#include "model/weights.h"

namespace rtp_llm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

ModelConfig shape_named(const std::string& name) {
  ModelConfig model{
      .architecture = "Qwen3ForCausalLM", .qk_norm = true, .max_position_embeddings = 40960, .dtype = DType::kBF16};
  if (name == "qwen3-8b") {
    model.vocab_size = 151936, model.hidden_size = 4096, model.intermediate_size = 12288, model.num_hidden_layers = 36;
    model.num_attention_heads = 32, model.num_key_value_heads = 8, model.head_dim = 128;
  } else if (name == "llama-3.1-8b") {
    model.architecture = "LlamaForCausalLM", model.qk_norm = false;
    model.vocab_size = 128256, model.hidden_size = 4096, model.intermediate_size = 14336, model.num_hidden_layers = 32;
    model.num_attention_heads = 32, model.num_key_value_heads = 8, model.head_dim = 128;
  } else if (name == "qwen2.5-0.5b") {
    model.vocab_size = 151936, model.hidden_size = 896, model.intermediate_size = 4864, model.num_hidden_layers = 24;
    model.num_attention_heads = 14, model.num_key_value_heads = 2, model.head_dim = 64;
    model.tie_word_embeddings = true;
  } else {
    throw InvalidArgument("SHAPE is qwen3-8b, llama-3.1-8b or qwen2.5-0.5b, got " + name);
  }
  return model;
}

// Random bf16 in ±0.035, one pool of it read from many places: 16 GB in seconds.
void write_weights(Weights& weights) {
  constexpr int64_t kPool = 16 << 20;  // elements
  std::vector<uint16_t> pool(2 * kPool);
  std::mt19937_64 random(1);
  for (size_t i = 0; i < pool.size(); i += 4) {
    uint64_t bits = random();
    for (size_t k = 0; k < 4; ++k, bits >>= 16)
      pool[i + k] = to_bf16((static_cast<float>(bits & 0xffff) - 32768.0f) * (0.034641016f / 32768.0f)).bits;
  }
  int64_t at = 0;
  for (const ExpectedTensor& tensor : weights.expected()) {
    const int64_t rows = tensor.shape[0];
    if (tensor.shape.size() == 1) {
      const std::vector<float> values(static_cast<size_t>(rows), tensor.name.ends_with("norm.weight") ? 1.0f : 0.0f);
      weights.write(tensor.name, 0, rows, 1, DType::kF32, values.data());
      continue;
    }
    const int64_t width = tensor.shape[1], most = kPool / width;
    for (int64_t first = 0; first < rows; first += most) {
      at = (at + 7919 * 8) % kPool;
      weights.write(tensor.name, first, std::min(most, rows - first), width, DType::kBF16, pool.data() + at);
    }
  }
  weights.finish();
}

int64_t weight_bytes_a_token(const ModelConfig& model) {
  const int64_t q = int64_t{model.num_attention_heads} * model.head_dim,
                kv = int64_t{model.num_key_value_heads} * model.head_dim;
  const int64_t layer = model.hidden_size * (q + 2 * kv) + q * model.hidden_size +
                        3 * int64_t{model.hidden_size} * model.intermediate_size;
  return 2 * (model.num_hidden_layers * layer + int64_t{model.vocab_size} * model.hidden_size);
}

int64_t kv_bytes_a_token(const ModelConfig& model) {
  return int64_t{2} * 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim;
}

// An engine whose outputs are taken on the caller's thread, with the time of each publication.
class Bench {
 public:
  Bench(Device& device, Decoder& decoder, const ModelConfig& model, const EngineConfig& config)
      : model_(model), engine_(device, decoder, config) {
    engine_.set_output_notify([this] {
      {
        std::lock_guard lock(mutex_);
        outputs_ = true;
      }
      changed_.notify_one();
    });
    engine_.start();
  }
  ~Bench() { engine_.stop(); }

  void add(int prompt_tokens, int max_tokens) {
    SequenceSpec spec{.key = {.router_epoch = 1, .request = ++last_request_}};
    spec.sampling.max_tokens = max_tokens;
    spec.sampling.temperature = 0;
    spec.sampling.ignore_eos = true;
    spec.prompt.resize(static_cast<size_t>(prompt_tokens));
    for (int32_t& token : spec.prompt)
      token = static_cast<int32_t>(random_() % static_cast<uint64_t>(model_.vocab_size));
    engine_.add(std::move(spec), Role::kAlone);
  }
  // The next publication: how many tokens, how many of them the last of their sequence.
  struct Publication {
    size_t tokens = 0;
    size_t finished = 0;
    Clock::time_point at;
  };
  Publication next() {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return outputs_; });
      outputs_ = false;
    }
    Publication publication{.at = Clock::now()};
    if (const auto failure = engine_.failure()) throw Error("engine failed: " + *failure);
    const TokenColumns columns = engine_.take_outputs();
    publication.tokens = columns.key.size();
    for (FinishReason finish : columns.finish) publication.finished += finish != FinishReason::kNone;
    return publication;
  }
  Engine& engine() { return engine_; }

 private:
  const ModelConfig& model_;
  Engine engine_;
  std::mt19937_64 random_{42};
  uint64_t last_request_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool outputs_ = false;
};

struct Options {
  std::vector<int> decode = {1, 8, 32};
  std::vector<int> prefill = {512, 2048};
  std::vector<int> saturated;
  int context = 1024;
  int steps = 128;
  int chunk = 8192;
  int threads = 1;
  int leaves = 0;  // the backend's own number
};

std::vector<int> numbers(const std::string& text) {
  std::vector<int> all;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    all.push_back(std::atoi(text.substr(at, end - at).c_str()));
    at = end + 1;
  }
  return all;
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

void bench_decode(Bench& bench, const ModelConfig& model, const Options& options, int batch, double read_rate) {
  for (int i = 0; i < batch; ++i) bench.add(options.context, options.steps + 2);
  std::vector<double> steps;
  Clock::time_point last{};
  bool full = false;  // the publication before had a token of each
  for (size_t finished = 0; finished < static_cast<size_t>(batch);) {
    const Bench::Publication one = bench.next();
    finished += one.finished;
    if (full && one.tokens == static_cast<size_t>(batch))
      steps.push_back(std::chrono::duration<double>(one.at - last).count());
    full = one.tokens == static_cast<size_t>(batch);
    last = one.at;
  }
  if (steps.size() > 8) steps.erase(steps.begin(), steps.begin() + 4);
  double sum = 0;
  for (double step : steps) sum += step;
  const double mean = steps.empty() ? 0 : sum / static_cast<double>(steps.size());
  const double bytes = static_cast<double>(weight_bytes_a_token(model)) +
                       static_cast<double>(kv_bytes_a_token(model)) * batch * (options.context + options.steps / 2.0);
  const double limit = bytes / read_rate;
  std::printf(
      "{\"decode\": %d, \"context\": %d, \"steps\": %zu, \"mean_ms\": %.4f, \"median_ms\": %.4f, \"limit_ms\": %.4f, "
      "\"of_limit\": %.4f}\n",
      batch, options.context, steps.size(), mean * 1e3, steps.empty() ? 0 : median(steps) * 1e3, limit * 1e3,
      mean > 0 ? limit / mean : 0);
  std::fflush(stdout);
}

void bench_prefill(Bench& bench, int tokens) {
  std::vector<double> times;
  for (int round = 0; round < 4; ++round) {
    const auto begin = Clock::now();
    bench.add(tokens, 1);
    bench.next();
    if (round > 0) times.push_back(seconds_since(begin));
  }
  std::printf("{\"prefill\": %d, \"median_ms\": %.3f, \"min_ms\": %.3f}\n", tokens, median(times) * 1e3,
              *std::ranges::min_element(times) * 1e3);
  std::fflush(stdout);
}

void bench_saturated(Bench& bench, int tokens) {
  const int prompts = std::max(4, 131072 / tokens);
  const auto begin = Clock::now();
  for (int i = 0; i < prompts; ++i) bench.add(tokens, 1);
  for (size_t finished = 0; finished < static_cast<size_t>(prompts);) finished += bench.next().finished;
  std::printf("{\"saturated\": %d, \"prompts\": %d, \"tokens_a_second\": %.0f}\n", tokens, prompts,
              prompts * static_cast<double>(tokens) / seconds_since(begin));
  std::fflush(stdout);
}

int run(int argc, char** argv) {
  if (argc < 3)
    throw InvalidArgument(
        "usage: engine DEVICE SHAPE [decode=1,8] [prefill=512] [saturated=2048] [context=1024] [steps=128] "
        "[chunk=8192] [threads=1] [leaves=1|2|4]");
  Options options;
  for (int i = 3; i < argc; ++i) {
    const std::string given = argv[i];
    const size_t equals = given.find('=');
    const std::string name = given.substr(0, equals),
                      value = equals == std::string::npos ? "" : given.substr(equals + 1);
    if (name == "decode")
      options.decode = numbers(value);
    else if (name == "prefill")
      options.prefill = numbers(value);
    else if (name == "saturated")
      options.saturated = numbers(value);
    else if (name == "context")
      options.context = std::atoi(value.c_str());
    else if (name == "steps")
      options.steps = std::atoi(value.c_str());
    else if (name == "chunk")
      options.chunk = std::atoi(value.c_str());
    else if (name == "threads")
      options.threads = std::atoi(value.c_str());
    else if (name == "leaves")
      options.leaves = std::atoi(value.c_str());
    else
      throw InvalidArgument("unknown option " + given);
  }
  Dl_info info{};
  dladdr(reinterpret_cast<void*>(&supported_isas), &info);
  const std::string libraries = std::filesystem::absolute(info.dli_fname).parent_path().string();
  const auto device = open_device(argv[1], {.num_threads = options.threads, .tree_leaves = options.leaves}, libraries);
  const ModelConfig model = shape_named(argv[2]);
  const bool gpu = device->backend() == "cuda";
  const double read_rate = device->read_rate(gpu ? int64_t{16} << 30 : int64_t{1} << 30, 4);
  auto begin = Clock::now();
  Weights weights(*device, model);
  write_weights(weights);
  const double loading = seconds_since(begin);
  Decoder decoder(*device, weights);
  EngineConfig config{.max_num_batched_tokens = options.chunk,
                      .max_num_seqs = 256,
                      .max_model_len = 40000,
                      .block_tokens = 64,
                      .kv_dtype = DType::kBF16};
  config.enable_prefix_caching = false;
  config.itl_target_s = 1;
  config.kv_pool_bytes = gpu ? int64_t{56} << 30 : int64_t{1} << 30;
  if (!options.decode.empty()) config.max_num_seqs = std::max(8, *std::ranges::max_element(options.decode));
  begin = Clock::now();
  Bench bench(*device, decoder, model, config);
  std::printf(
      "{\"device\": \"%s/%s\", \"shape\": \"%s\", \"read_tb_s\": %.3f, \"loading_s\": %.2f, \"engine_s\": %.2f, "
      "\"numerics_id\": \"%s\"}\n",
      device->backend().c_str(), device->isa().c_str(), argv[2], read_rate / 1e12, loading, seconds_since(begin),
      bench.engine().numerics_id().c_str());
  std::fflush(stdout);
  for (int batch : options.decode) bench_decode(bench, model, options, batch, read_rate);
  for (int tokens : options.prefill) bench_prefill(bench, tokens);
  for (int tokens : options.saturated) bench_saturated(bench, tokens);
  return 0;
}

}  // namespace
}  // namespace rtp_llm

int main(int argc, char** argv) {
  try {
    return rtp_llm::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
