// The product of q, k, v with norm, rotation and the store behind it, against the linear and qkv_rope_store one after
// the other. Needs a GPU; prints a line a case, exit status 1 if one failed.
//
//   linear_rope_test small           small shapes, for compute-sanitizer
//   linear_rope_test check           bits: every kernel that reads a table, every shape, rows in any order
//   linear_rope_test time [rows ...] microseconds a layer, heads of Qwen3-8B, replayed in turns
#include <algorithm>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <numeric>
#include <random>

#include "device/cuda/rope_vector.cuh"
#include "linear_fixture.cuh"

namespace rtp_llm::cuda::fixture {
namespace {

int failures = 0;

void report(bool good, const std::string& what) {
  std::printf("%s %s\n", good ? "ok  " : "FAIL", what.c_str());
  std::fflush(stdout);
  if (!good) ++failures;
}

// Values of the first `width` of each of two matrices' rows that are not the same.
__global__ void compare_rows(const bf16* a, const bf16* b, int64_t stride, int width, unsigned long long* count) {
  const int64_t first = blockIdx.x * stride;
  for (int i = threadIdx.x; i < width; i += blockDim.x)
    if (__bfloat16_as_ushort(a[first + i]) != __bfloat16_as_ushort(b[first + i])) atomicAdd(count, 1ull);
}

struct Case {
  int heads, kv_heads, head_dim, hidden;
  bool normed, bias;
  int block_tokens;

  int vectors() const { return heads + 2 * kv_heads; }
  int width() const { return vectors() * head_dim; }
  std::string name() const {
    return concat(heads, "/", kv_heads, " heads of ", head_dim, normed ? ", normed" : "", bias ? ", bias" : "",
                  ", hidden ", hidden, ", blocks of ", block_tokens);
  }
};

template <class T>
void upload(DeviceArray<T>& to, const std::vector<T>& from) {
  cuda_check(cudaMemcpy(to.data, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice), "upload");
}

// Rows of some sequences, of which each has some positions before them, in a mixed order; and their pool.
class Rig {
 public:
  static constexpr int kSlots = 5, kPoolLayers = 4;

  Rig(const Case& which, int max_rows, int weight_copies, uint32_t seed)
      : which_(which),
        max_rows_(max_rows),
        max_blocks_((max_rows + 1000) / which.block_tokens + 1),
        w_(int64_t{which.width()} * which.hidden),
        packed_(packed_bytes(which.width(), which.hidden) * weight_copies),
        x_(int64_t{max_rows} * which.hidden),
        bias_((which.width() + 15) / 16 * 16),
        norms_(2 * which.head_dim),
        inv_freq_(which.head_dim / 2),
        seq_len_(kSlots),
        row_slot_(max_rows),
        row_offset_(max_rows),
        tables_(kSlots * max_blocks_),
        table_(rope_table_bytes(max_rows, which.head_dim)),
        qkv_(int64_t{max_rows} * which.width()),
        expected_(int64_t{max_rows} * which.width()),
        pool_(block_bytes() * kSlots * max_blocks_),
        expected_pool_(pool_.count),
        different_(1),
        random_(seed) {
    fill(w_, 0.02f, seed);
    fill(x_, 1.0f, seed + 1);
    fill(bias_, 0.5f, seed + 2);
    fill(norms_, 1.0f, seed + 3);
    std::vector<float> frequencies;
    for (int i = 0; i < which.head_dim / 2; ++i)
      frequencies.push_back(static_cast<float>(std::pow(1e6, -2.0 * i / which.head_dim)));
    upload(inv_freq_, frequencies);
    std::vector<int32_t> blocks(tables_.count);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::ranges::shuffle(blocks, random_);
    upload(tables_, blocks);
    cuda_check(cudaMemset(packed_.data, 0, packed_.count), "cudaMemset");
    for (int copy = 0; copy < weight_copies; ++copy)
      pack_rows(nullptr, {.rows = w_.data,
                          .count = which.width(),
                          .in_features = which.hidden,
                          .out_features = which.width(),
                          .weights = weights(copy)});
    cuda_check(cudaDeviceGetAttribute(&num_sms_, cudaDevAttrMultiProcessorCount, 0), "num_sms");
  }

  // Draws where `rows` rows stand.
  void place(int rows) {
    rows_ = rows;
    std::vector<int32_t> seq_len, of_slot(kSlots, 0), slots, offsets, order(static_cast<size_t>(rows));
    for (int slot = 0; slot < kSlots; ++slot) seq_len.push_back(static_cast<int32_t>(random_() % 900));
    std::iota(order.begin(), order.end(), 0);
    std::ranges::shuffle(order, random_);
    slots.resize(order.size()), offsets.resize(order.size());
    for (const int row : order) {
      const int slot = static_cast<int>(random_() % kSlots);
      slots[static_cast<size_t>(row)] = slot;
      offsets[static_cast<size_t>(row)] = of_slot[static_cast<size_t>(slot)]++;
    }
    upload(seq_len_, seq_len);
    upload(row_slot_, slots);
    upload(row_offset_, offsets);
  }

  KvView kv(int layer) const {
    KvView view;
    view.token_stride = which_.head_dim * 2;
    view.head_stride = view.token_stride * which_.block_tokens;
    const int64_t plane = view.head_stride * which_.kv_heads;
    view.base = pool_.data + layer * 2 * plane;
    view.block_stride = block_bytes();
    view.plane_offset[1] = plane;
    view.num_heads = which_.kv_heads;
    view.head_dim = which_.head_dim;
    view.block_tokens = which_.block_tokens;
    view.num_blocks = kSlots * max_blocks_;
    view.dtype = DType::kBF16;
    return view;
  }
  void make_table(cudaStream_t stream) {
    make_rope_table(stream,
                    {.inv_freq = inv_freq_.data,
                     .kv = kv(0),
                     .num_rows = rows_,
                     .row_slot = row_slot_.data,
                     .row_offset = row_offset_.data,
                     .seq_len = seq_len_.data,
                     .block_tables = tables_.data,
                     .block_table_stride = max_blocks_},
                    table_.data);
  }
  RopeStoreProblem rope(int layer, bool by_table) const {
    return {.qkv = qkv_.data,
            .stride = which_.width(),
            .num_rows = rows_,
            .num_heads = which_.heads,
            .q_norm = which_.normed ? norms_.data : nullptr,
            .k_norm = which_.normed ? norms_.data + which_.head_dim : nullptr,
            .norm_epsilon = 1e-6f,
            .inv_freq = inv_freq_.data,
            .rotary_half = which_.head_dim / 2,
            .kv = kv(layer),
            .row_slot = row_slot_.data,
            .row_offset = row_offset_.data,
            .seq_len = seq_len_.data,
            .block_tables = tables_.data,
            .block_table_stride = max_blocks_,
            .table = by_table ? rope_table_in(table_.data, rows_) : RopeTable{}};
  }
  LinearProblem product(int copy, LinearOutput output, const RopeStoreProblem& rope) const {
    return {.weights = weights(copy),
            .out_features = which_.width(),
            .in_features = which_.hidden,
            .bias = which_.bias ? bias_.data : nullptr,
            .x = x_.data,
            .x_stride = which_.hidden,
            .rows = rows_,
            .output = output,
            .out = qkv_.data,
            .out_stride = which_.width(),
            .rope = rope};
  }

  void check(int rows) {
    place(rows);
    make_table(nullptr);
    std::string failed;
    const auto bits = [&](const std::string& what, const std::function<void()>& run) {
      qkv_.poison();
      pool_.poison();
      run();
      cuda_check(cudaDeviceSynchronize(), what.c_str());
      if (what.empty()) {
        cuda_check(cudaMemcpy(expected_.data, qkv_.data, qkv_.count * 2, cudaMemcpyDeviceToDevice), "copy");
        cuda_check(cudaMemcpy(expected_pool_.data, pool_.data, pool_.count, cudaMemcpyDeviceToDevice), "copy");
        return;
      }
      cuda_check(cudaMemset(different_.data, 0, 8), "cudaMemset");
      compare_rows<<<rows, 256>>>(qkv_.data, expected_.data, which_.width(), which_.heads * which_.head_dim,
                                  different_.data);
      count_different<<<512, 256>>>(pool_.data, expected_pool_.data, pool_.count, different_.data);
      unsigned long long count = 0;
      cuda_check(cudaMemcpy(&count, different_.data, 8, cudaMemcpyDeviceToHost), what.c_str());
      if (count > 0) failed += concat("; ", what, ": ", count, " values differ");
    };
    const auto product_alone = [&] { run_linear(nullptr, product(0, LinearOutput::kBf16, {}), 9, num_sms_); };
    bits("", [&] {
      product_alone();
      qkv_rope_store(nullptr, rope(1, false));
    });
    bits("by table", [&] {
      product_alone();
      qkv_rope_store(nullptr, rope(1, true));
    });
    bits("run_linear_rope",
         [&] { run_linear_rope(nullptr, product(0, LinearOutput::kBf16, rope(1, true)), 9, num_sms_); });
    const LinearProblem one = product(0, LinearOutput::kRoped, rope(1, true));
    for (WgmmaShape shape : wgmma_shapes(LinearOutput::kRoped, 1)) {
      shape = wgmma_with(one, num_sms_, shape);
      for (const int grid : {shape.grid, 4}) {  // few CTAs: each takes several tiles
        shape.grid = grid;
        bits(concat("one kernel, ", shape.tile_rows, " rows of W, grid ", grid),
             [&] { linear_wgmma(nullptr, one, shape); });
      }
    }
    report(failed.empty(), concat(which_.name(), ", rows ", rows, failed));
  }

  void* weights(int copy) const { return packed_.data + copy * packed_bytes(which_.width(), which_.hidden); }
  int num_sms() const { return num_sms_; }

 private:
  int64_t block_bytes() const {
    return int64_t{kPoolLayers} * 2 * which_.kv_heads * which_.block_tokens * which_.head_dim * 2;
  }

  Case which_;
  int max_rows_, max_blocks_, rows_ = 0, num_sms_ = 0;
  DeviceArray<bf16> w_;
  DeviceArray<uint8_t> packed_;
  DeviceArray<bf16> x_;
  DeviceArray<float> bias_, norms_, inv_freq_;
  DeviceArray<int32_t> seq_len_, row_slot_, row_offset_, tables_;
  DeviceArray<uint8_t> table_;
  DeviceArray<bf16> qkv_, expected_;
  DeviceArray<uint8_t> pool_, expected_pool_;
  DeviceArray<unsigned long long> different_;
  std::mt19937 random_;
};

// Every float above 0, infinity too.
__global__ void compare_roots(unsigned long long* different) {
  const uint64_t step = uint64_t{gridDim.x} * blockDim.x;
  for (uint64_t bits = 1 + blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; bits <= 0x7f800000; bits += step) {
    const float x = __uint_as_float(static_cast<uint32_t>(bits));
    if (inverse_root(x) != __frcp_rn(__fsqrt_rn(x))) atomicAdd(different, 1ull);
  }
}

void check_roots() {
  DeviceArray<unsigned long long> different(1);
  cuda_check(cudaMemset(different.data, 0, 8), "cudaMemset");
  compare_roots<<<1056, 512>>>(different.data);
  unsigned long long count = 0;
  cuda_check(cudaMemcpy(&count, different.data, 8, cudaMemcpyDeviceToHost), "compare_roots");
  report(count == 0, concat("inverse_root: ", count, " of all floats above 0 differ from two rounded steps"));
}

void check_all(bool small) {
  uint32_t seed = static_cast<uint32_t>(time(nullptr));
  std::printf("seed %u\n", seed);
  std::vector<Case> cases{{2, 1, 128, 128, true, false, 16}, {3, 1, 64, 192, false, true, 32}};
  std::vector<int> counts{1, 33, 130};
  if (!small) {
    check_roots();
    cases = {{32, 8, 128, 4096, true, false, 64}, {32, 8, 128, 512, false, false, 16}, {8, 2, 128, 192, true, true, 32},
             {14, 2, 64, 896, false, true, 64},   {16, 16, 64, 320, true, false, 16},  {3, 1, 64, 64, true, false, 32},
             {5, 1, 128, 256, true, false, 64}};
    counts = {1,   2,   7,   31,  32,  33,  63,   64,   65,   100,  127, 128,
              129, 255, 256, 257, 511, 640, 1000, 1023, 1536, 2047, 2048};
  }
  for (const Case& which : cases) {
    Rig rig(which, small ? 160 : 2048, 1, seed += 17);
    for (const int rows : counts) rig.check(rows);
  }
}

// ---- Times
// -----------------------------------------------------------------------------------------------------------

// A graph of launch(0) ... launch(count - 1) and the times of its replays.
class Replay {
 public:
  Replay(cudaStream_t stream, int count, const std::function<void(int)>& launch) : stream_(stream), count_(count) {
    cudaGraph_t graph;
    cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < count; ++i) launch(i);
    cuda_check(cudaStreamEndCapture(stream, &graph), "capture");
    cuda_check(cudaGraphInstantiate(&graph_, graph, 0), "instantiate");
    cudaGraphDestroy(graph);
    cudaEventCreate(&begin_);
    cudaEventCreate(&end_);
  }
  Replay(const Replay&) = delete;
  ~Replay() {
    cudaGraphExecDestroy(graph_);
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  void run() {
    cudaEventRecord(begin_, stream_);
    cuda_check(cudaGraphLaunch(graph_, stream_), "replay");
    cudaEventRecord(end_, stream_);
    cuda_check(cudaEventSynchronize(end_), "replay");
    float ms;
    cudaEventElapsedTime(&ms, begin_, end_);
    times_.push_back(ms * 1e3f / static_cast<float>(count_));
  }
  float median() {
    std::sort(times_.begin() + 1, times_.end());
    return times_[1 + (times_.size() - 1) / 2];
  }

 private:
  cudaStream_t stream_;
  int count_;
  cudaGraphExec_t graph_{};
  cudaEvent_t begin_{}, end_{};
  std::vector<float> times_;
};

void time_all(const std::vector<int>& counts) {
  constexpr int kLayers = 24;
  cudaStream_t stream;
  cuda_check(cudaStreamCreate(&stream), "stream");
  Rig rig({32, 8, 128, 4096, true, false, 64}, *std::ranges::max_element(counts), kLayers, 7);
  std::printf(
      "us a layer: product, its store apart without and with a table, one kernel of 256 and of 128 rows of W\n");
  for (const int rows : counts) {
    rig.place(rows);
    rig.make_table(nullptr);
    const int layers = rows > 2048 ? 6 : kLayers;
    std::vector<std::unique_ptr<Replay>> replays;
    const auto add = [&](const std::function<void(int)>& launch) {
      replays.push_back(std::make_unique<Replay>(stream, layers, launch));
    };
    const auto product = [&](int i) { run_linear(stream, rig.product(i, LinearOutput::kBf16, {}), 9, rig.num_sms()); };
    add(product);
    for (const bool by_table : {false, true})
      add([&, by_table](int i) {
        product(i);
        qkv_rope_store(stream, rig.rope(i % Rig::kPoolLayers, by_table));
      });
    for (WgmmaShape shape : wgmma_shapes(LinearOutput::kRoped, 1))
      add([&, shape](int i) {
        const LinearProblem one = rig.product(i, LinearOutput::kRoped, rig.rope(i % Rig::kPoolLayers, true));
        linear_wgmma(stream, one, wgmma_with(one, rig.num_sms(), shape));
      });
    for (const bool by_table : {false, true})
      add([&, by_table](int i) { qkv_rope_store(stream, rig.rope(i % Rig::kPoolLayers, by_table)); });
    add([&](int) { rig.make_table(stream); });
    for (int turn = 0; turn < 9; ++turn)
      for (auto& replay : replays) replay->run();
    std::printf("%5d rows:", rows);
    for (auto& replay : replays) std::printf(" %8.2f", replay->median());
    std::printf("   (the last three: the store alone, without and with a table; the table)\n");
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace rtp_llm::cuda::fixture

int main(int argc, char** argv) {
  using namespace rtp_llm::cuda::fixture;
  const std::string what = argc > 1 ? argv[1] : "check";
  std::vector<int> counts;
  for (int i = 2; i < argc; ++i) counts.push_back(std::atoi(argv[i]));
  if (counts.empty()) counts = {64, 128, 256, 512, 1024, 2048, 4096, 8192};
  try {
    what == "time" ? time_all(counts) : check_all(what == "small");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  std::printf("%d failed\n", failures);
  return failures != 0;
}
