// CPU ops against the machine: memory read rate and the peak of the level's bf16 products as yardsticks, then the
// linears of one decode step and of a 512-token prefill on the shape of Qwen2.5-0.5B (bf16), in one run, best of
// several rounds.
//
//   ops [LIBRARY_DIR] [ISA]       LIBRARY_DIR: where librtp_cpu_<isa>.so lies, default: beside librtp_core.so
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "device/device.h"
#include "device/ops.h"

namespace {

using namespace rtp_llm;

constexpr int64_t kHidden = 896, kInter = 4864, kVocab = 151936, kLayers = 24;
constexpr int64_t kHeads = 14, kKvHeads = 2, kHeadDim = 64;
constexpr int64_t kQkv = (kHeads + 2 * kKvHeads) * kHeadDim;
constexpr int kRounds = 7;

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double best_of(int rounds, const std::function<void()>& work) {
  double best = 1e30;
  for (int i = 0; i < rounds; ++i) best = std::min(best, seconds_of(work));
  return best;
}

// Runs work(thread) on `threads` threads at once.
void on_threads(int threads, const std::function<void(int)>& work) {
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work, i);
  work(0);
  for (std::thread& other : others) other.join();
}

// ---- Yardsticks --------------------------------------------------------------------------------

#if defined(__x86_64__)
__attribute__((target("avx2"))) uint64_t read_all(const uint8_t* at, int64_t bytes) {
  __m256i sums[4] = {};
  for (int64_t i = 0; i < bytes; i += 128) {
    _mm_prefetch(reinterpret_cast<const char*>(at + i + 4096), _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(at + i + 4160), _MM_HINT_T1);
    for (int j = 0; j < 4; ++j)
      sums[j] = _mm256_xor_si256(sums[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(at + i + j * 32)));
  }
  const __m256i sum = _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(sum, 0));
}

// Two multiply-accumulates of 32 pairs a cycle at best: 24 independent chains.
__attribute__((target("avx512f,avx512bf16"))) float dot_products(int64_t rounds) {
  __m512 sums[24];
  for (int j = 0; j < 24; ++j) sums[j] = _mm512_set1_ps(static_cast<float>(j));  // chains that differ
  const auto ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < 24; ++j) sums[j] = _mm512_dpbf16_ps(sums[j], ones, ones);
  }
  float total = 0;
  for (const __m512& sum : sums) total += ((const float*)&sum)[0];
  return total;
}

// Products of tiles of zeros: 6 independent chains. open_device has asked for the tile registers.
__attribute__((target("amx-tile,amx-bf16"))) void tile_products(int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);  // zeroes the tiles
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(1, 6, 7);
    _tile_dpbf16ps(2, 6, 7);
    _tile_dpbf16ps(3, 6, 7);
    _tile_dpbf16ps(4, 6, 7);
    _tile_dpbf16ps(5, 6, 7);
  }
  _tile_release();
}
#else
uint64_t read_all(const uint8_t* at, int64_t bytes) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < bytes; i += 8) sum ^= *reinterpret_cast<const uint64_t*>(at + i);
  return sum;
}
#endif

std::atomic<uint64_t> sink{0};

double read_rate(const Buffer& buffer, int threads) {
  const int64_t piece = buffer.bytes() / threads / 4096 * 4096;
  const double seconds = best_of(kRounds, [&] {
    on_threads(threads, [&](int thread) {
      sink += read_all(static_cast<const uint8_t*>(buffer.data()) + thread * piece, piece);
    });
  });
  return static_cast<double>(piece * threads) / seconds / 1e9;
}

// GFLOP/s of the level's bf16 products in registers; 0 where it has no instruction for them.
double product_peak(const std::string& isa, int threads) {
#if defined(__x86_64__)
  constexpr int64_t kIterations = 200'000;
  const auto rate = [&](double flops, const std::function<void()>& work) {
    return threads * flops / best_of(kRounds, [&] { on_threads(threads, [&](int) { work(); }); }) / 1e9;
  };
  if (isa == "amxbf16") return rate(kIterations * 6.0 * 16384, [&] { tile_products(kIterations); });
  if (isa == "avx512bf16")
    return rate(kIterations * 24.0 * 64, [&] { sink += static_cast<uint64_t>(dot_products(kIterations)); });
#endif
  (void)threads;
  return 0;
}

// ---- The model's linears -----------------------------------------------------------------------

std::unique_ptr<PackedLinear> random_weight(Ops& ops, const std::string& name, int64_t rows, int64_t features) {
  auto packer = ops.pack(
      {.name = name, .in_features = features, .parts = {{"all", rows}}, .dtype = DType::kBF16, .gather = true});
  constexpr int64_t kChunk = 64;
  std::vector<uint16_t> chunk(static_cast<size_t>(kChunk * features));
  uint32_t state = 1;
  for (uint16_t& value : chunk) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<uint16_t>(0x3c00u | (state >> 16 & 0x80ffu));
  }
  for (int64_t row = 0; row < rows; row += kChunk)
    packer->write_rows(0, row, make_tensor(chunk.data(), DType::kBF16, {std::min(kChunk, rows - row), features}));
  return packer->finish();
}

struct Layer {
  std::unique_ptr<PackedLinear> qkv, o, gate_up, down;
};

struct Model {
  explicit Model(Ops& ops) : lm_head(random_weight(ops, "lm_head", kVocab, kHidden)) {
    for (int64_t i = 0; i < kLayers; ++i)
      layers.push_back({random_weight(ops, "qkv", kQkv, kHidden), random_weight(ops, "o", kHidden, kHidden),
                        random_weight(ops, "gate_up", 2 * kInter, kHidden),
                        random_weight(ops, "down", kHidden, kInter)});
  }
  static int64_t layer_parameters() { return kHidden * (kQkv + kHidden + 3 * kInter); }
  std::vector<Layer> layers;
  std::unique_ptr<PackedLinear> lm_head;
};

// Activations of M rows, in bf16 as linears read them.
struct Activations {
  explicit Activations(Device& device, int64_t rows)
      : memory(device.allocate(rows * (kHidden * 6 + kQkv * 4 + kInter * 10) + kVocab * 4, "activations")) {
    auto* at = static_cast<uint8_t*>(memory.data());
    const auto take = [&](DType dtype, int64_t m, int64_t n) {
      const Tensor x = make_tensor(at, dtype, {m, n});
      at += m * n * size_of(dtype);
      return x;
    };
    normed = take(DType::kBF16, rows, kHidden), stream = take(DType::kF32, rows, kHidden);
    qkv = take(DType::kF32, rows, kQkv), gate_up = take(DType::kF32, rows, 2 * kInter);
    activated = take(DType::kBF16, rows, kInter), logits = take(DType::kF32, 1, kVocab);
  }
  Buffer memory;
  Tensor normed, stream, qkv, gate_up, activated, logits;
};

void run_linears(Ops& ops, const Model& model, const Activations& x) {
  for (const Layer& layer : model.layers) {
    ops.linear({.x = x.normed, .weight = layer.qkv.get(), .out = x.qkv});
    ops.linear({.x = x.normed, .weight = layer.o.get(), .out = x.stream, .residual = x.stream});
    ops.linear({.x = x.normed, .weight = layer.gate_up.get(), .out = x.gate_up});
    ops.linear({.x = x.activated, .weight = layer.down.get(), .out = x.stream, .residual = x.stream});
  }
  ops.linear({.x = x.normed.rows(0, 1), .weight = model.lm_head.get(), .out = x.logits});
}

void report_decode(Device& device, const Model& model, double read) {
  const double bytes = static_cast<double>(2 * (kLayers * Model::layer_parameters() + kVocab * kHidden));
  for (int64_t rows : {1, 4, 16}) {
    const Activations x(device, rows);
    const double seconds = best_of(kRounds, [&] { run_linears(device.ops(), model, x); });
    std::printf("  decode linears M=%-2ld     %7.2f ms  %6.1f GB/s  %.2f of read\n", static_cast<long>(rows),
                seconds * 1e3, bytes / seconds / 1e9, bytes / seconds / 1e9 / read);
  }
}

void report_prefill(Device& device, const Model& model, double peak) {
  constexpr int64_t kTokens = 512;
  const Activations x(device, kTokens);
  const double flops = 2.0 * kTokens * kLayers * Model::layer_parameters() + 2.0 * kVocab * kHidden;
  const double seconds = best_of(3, [&] { run_linears(device.ops(), model, x); });
  std::printf("  prefill linears M=512   %7.1f ms  %6.0f GFLOP/s  %.2f of peak\n", seconds * 1e3, flops / seconds / 1e9,
              peak > 0 ? flops / seconds / 1e9 / peak : 0.0);
}

// Attention of one layer: a 512-token prefill, and one decode row at 1,024 positions.
void report_attention(Device& device) {
  constexpr int kBlockTokens = 16;
  constexpr int64_t kPositions = 1040, kRows = 512;
  const int64_t vector = kHeadDim * 2, head = vector * kBlockTokens, block = 2 * kKvHeads * head;
  const int64_t blocks = kPositions / kBlockTokens;
  Ops& ops = device.ops();
  const Buffer pool = device.allocate_shareable(blocks * block, "kv_pool");
  std::vector<int32_t> table(static_cast<size_t>(blocks)), seq_len(1), zeros(1);
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
  const Slots slots{.last_token = make_tensor(zeros.data(), DType::kI32, {1}),
                    .seq_len = make_tensor(seq_len.data(), DType::kI32, {1}),
                    .output_position = make_tensor(zeros.data(), DType::kI32, {1}),
                    .block_tables = make_tensor(table.data(), DType::kI32, {1, blocks})};
  const KvView kv{.base = static_cast<uint8_t*>(pool.data()),
                  .block_stride = block,
                  .plane_offset = {0, kKvHeads * head},
                  .head_stride = head,
                  .token_stride = vector,
                  .num_heads = kKvHeads,
                  .head_dim = kHeadDim,
                  .block_tokens = kBlockTokens,
                  .num_blocks = blocks,
                  .dtype = DType::kBF16};
  const Buffer q = device.allocate(kRows * kHeads * kHeadDim * 4, "q"),
               out = device.allocate(kRows * kHeads * kHeadDim * 4, "out");
  const Buffer workspace =
      device.allocate(ops.attention_workspace_bytes(1, kHeads, kKvHeads, kHeadDim, kPositions), "workspace");
  const auto time = [&](int rows, int position, Form form) {
    seq_len[0] = position;
    const Segment segments[] = {{.slot = 0, .rows = rows, .form = form}};
    StepRows step{.slots = &slots, .num_rows = rows, .max_position = position + rows - 1, .segments = segments};
    (form == Form::kPrefill ? step.prefills : step.decodes) = segments;
    const AttentionArgs args{.q = make_tensor(q.data(), DType::kF32, {rows, kHeads, kHeadDim}),
                             .kv = kv,
                             .step = &step,
                             .scale = 0.125f,
                             .out = make_tensor(out.data(), DType::kF32, {rows, kHeads * kHeadDim}),
                             .workspace = make_tensor(workspace.data(), DType::kU8, {workspace.bytes()})};
    return best_of(kRounds, [&] {
      form == Form::kPrefill ? ops.paged_attention_prefill(args) : ops.paged_attention_decode(args);
    });
  };
  const double prefill = time(kRows, 0, Form::kPrefill), decode = time(1, 1023, Form::kDecode);
  const double flops = 2.0 * kRows * (kRows + 1) * kHeads * kHeadDim;
  std::printf("  attention, one layer    512 rows %.2f ms (%.0f GFLOP/s), decode at 1,024 %.1f us\n", prefill * 1e3,
              flops / prefill / 1e9, decode * 1e6);
}

void report_sampling(Device& device) {
  const Buffer logits = device.allocate(kVocab * 4, "logits");
  uint32_t state = 1;
  for (int64_t i = 0; i < kVocab; ++i) {
    state = state * 1664525u + 1013904223u;
    static_cast<float*>(logits.data())[i] = static_cast<float>(state >> 8) * 0x1p-22f;
  }
  const Buffer workspace = device.allocate(device.ops().sample_workspace_bytes(1, kVocab), "workspace");
  int32_t words[3] = {};
  float logprob = 0;
  SamplingState sampling;
  const Slots slots{.last_token = make_tensor(&words[0], DType::kI32, {1}),
                    .seq_len = {},
                    .output_position = make_tensor(&words[1], DType::kI32, {1}),
                    .block_tables = {},
                    .sampling = &sampling};
  const SampleRow rows[] = {{.slot = 0, .row = 0}};
  const StepRows step{.slots = &slots, .num_rows = 1, .sample_rows = rows};
  const auto time = [&](SamplingState with) {
    sampling = with;
    return 1e6 * best_of(kRounds, [&] {
             device.ops().sample({.logits = make_tensor(logits.data(), DType::kF32, {1, kVocab}),
                                  .step = &step,
                                  .tokens = make_tensor(&words[2], DType::kI32, {1}),
                                  .logprobs = make_tensor(&logprob, DType::kF32, {1}),
                                  .top_tokens = {},
                                  .top_logprobs = {},
                                  .workspace = make_tensor(workspace.data(), DType::kU8, {workspace.bytes()})});
           });
  };
  SamplingState greedy, plain, cut;
  greedy.temperature = 0, cut.top_k = 50, cut.top_p = 0.9f;
  std::printf("  sample, vocab 151,936   greedy %.0f us, temperature %.0f us, top_k 50 and top_p 0.9 %.0f us\n",
              time(greedy), time(plain), time(cut));
}

std::string default_library_dir() {
  Dl_info info{};
  dladdr(reinterpret_cast<void*>(&supported_isas), &info);
  return std::filesystem::absolute(info.dli_fname).parent_path().string();
}

}  // namespace

int main(int argc, char** argv) {
  const std::string directory = argc > 1 ? argv[1] : default_library_dir();
  const int most = static_cast<int>(std::min(2u, std::max(1u, std::thread::hardware_concurrency())));
  for (int threads = 1; threads <= most; ++threads) {
    const auto device = open_device("cpu", {.num_threads = threads, .isa = argc > 2 ? argv[2] : ""}, directory);
    const Buffer memory = device->allocate(int64_t{512} << 20, "yardstick");
    std::memset(memory.data(), 1, static_cast<size_t>(memory.bytes()));
    const Model model(device->ops());
    const double read = read_rate(memory, threads), peak = product_peak(device->isa(), threads);
    std::printf("%s, %d thread%s: memory read %.1f GB/s, bf16 product peak %.0f GFLOP/s\n", device->isa().c_str(),
                threads, threads > 1 ? "s" : "", read, peak);
    report_decode(*device, model, read);
    report_prefill(*device, model, peak);
    report_attention(*device);
    report_sampling(*device);
  }
}
