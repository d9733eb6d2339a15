// Times the linears on the shapes of Qwen3-8B: graphs of launches over distinct weights, medians of replays, beside the
// read rate and cuBLASLt's best algorithm that keeps the bits, of the same run.
//
//   linear_bench [all] [rows ...]      (1 8 16 32 64 128 256 512 2048 8192; all: every shape that has a kernel)
//
// A line a kernel and configuration: microseconds a launch, TB/s of weights and the fraction of the read rate, TFLOP/s.
// Before them, how many of cuBLASLt's algorithms give run_linear's bits (bf16 or f32 out, with the residual).
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>

#include "../../tests/cuda/linear_fixture.cuh"
#include "cublas_lt.h"

namespace rtp_llm::cuda::fixture {
namespace {

constexpr int64_t kPoolBytes = int64_t{17} << 30;

__global__ void __launch_bounds__(512) read_all(const uint4* from, int64_t count, uint4* out) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  uint4 sum{};
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i + 7 * stride < count; i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j)
      asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(v[j].x), "=r"(v[j].y), "=r"(v[j].z), "=r"(v[j].w)
                   : "l"(from + i + j * stride));
#pragma unroll
    for (int j = 0; j < 8; ++j) sum.x ^= v[j].x, sum.y ^= v[j].y, sum.z ^= v[j].z, sum.w ^= v[j].w;
  }
  if (sum.x == 0x12345678 && sum.y == 0x9abcdef) *out = sum;
}

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
    times_.push_back(ms);
  }
  // Milliseconds a launch, the first replay left out.
  double median() {
    std::sort(times_.begin() + 1, times_.end());
    return times_[1 + (times_.size() - 1) / 2] / count_;
  }

 private:
  cudaStream_t stream_;
  int count_;
  cudaGraphExec_t graph_{};
  cudaEvent_t begin_{}, end_{};
  std::vector<float> times_;
};

double median_ms(cudaStream_t stream, int count, const std::function<void(int)>& launch, int replays = 6) {
  Replay replay(stream, count, launch);
  for (int i = 0; i < replays; ++i) replay.run();
  return replay.median();
}

struct Shape {
  const char* name;
  int n, k;
  LinearOutput output;
  bool residual, tree;
};

constexpr Shape kShapes[] = {{"qkv", 6144, 4096, LinearOutput::kBf16, false, false},
                             {"o", 4096, 4096, LinearOutput::kBf16, true, true},
                             {"gate_up", 24576, 4096, LinearOutput::kGated, false, false},
                             {"down", 4096, 12288, LinearOutput::kBf16, true, true},
                             {"lm_head", 151936, 4096, LinearOutput::kF32, false, false}};

class Bench {
 public:
  Bench(std::vector<int> rows, bool all)
      : all_(all),
        rows_(std::move(rows)),
        most_(*std::max_element(rows_.begin(), rows_.end())),
        pool_(kPoolBytes / 2),
        x_(int64_t{most_} * 12288),
        residual_(int64_t{most_} * 4096),
        packed_(packed_bytes(151936, 4096)),
        out_(std::max(int64_t{most_} * 24576 * 2, int64_t{256} * 151936 * 4)) {
    cudaDeviceProp properties{};
    cuda_check(cudaGetDeviceProperties(&properties, 0), "properties");
    sms_ = properties.multiProcessorCount;
    cuda_check(cudaStreamCreate(&stream_), "stream");
    fill(pool_, 0.02f, 1);
    fill(x_, 1.0f, 2);
    fill(residual_, 1.0f, 3);
    rate_ = read_rate();
    std::printf("%s, %d SMs, read rate %.3f TB/s over %.0f GB\n", properties.name, sms_, rate_, kPoolBytes / 1e9);
  }

  void run() {
    for (const Shape& shape : kShapes)
      for (const int rows : rows_) {
        if (shape.output == LinearOutput::kF32 && rows > 256) continue;
        std::printf("%s %d x %d, M %d\n", shape.name, shape.n, shape.k, rows);
        compare_bits(shape, rows);
        time_in_turns(shape, rows);
        if (all_)
          for (const int leaves : shape.tree ? std::vector<int>{1, 2, 4} : std::vector<int>{1})
            time_shapes(shape, rows, leaves);
        std::fflush(stdout);
      }
  }

 private:
  double read_rate() {
    double best = 0;
    for (const int grid : {264, 528, 1056}) {
      const double ms = median_ms(stream_, 1, [&](int) {
        read_all<<<grid, 512, 0, stream_>>>(reinterpret_cast<const uint4*>(pool_.data), kPoolBytes / 16,
                                            reinterpret_cast<uint4*>(out_.data));
      });
      best = std::max(best, kPoolBytes / ms / 1e9);
    }
    return best;
  }

  int64_t weight_bytes(const Shape& shape) const { return int64_t{shape.n} * shape.k * 2; }
  int copies(const Shape& shape, int rows) const {
    const int64_t room = kPoolBytes / weight_bytes(shape);
    return static_cast<int>(std::clamp<int64_t>(rows > 2048 ? 3 : rows > 256 ? 8 : 36, 1, room));
  }
  const uint8_t* weights(const Shape& shape, int copy) const {
    return reinterpret_cast<const uint8_t*>(pool_.data) + copy * weight_bytes(shape);
  }

  void print(const Shape& shape, int rows, const char* what, double ms, double lt) const {
    const double rate = weight_bytes(shape) / ms / 1e9;
    std::printf("  %-44s %9.2f us %6.3f TB/s %5.3f %7.1f TFLOP/s", what, ms * 1e3, rate, rate / rate_,
                2.0 * rows * shape.n * shape.k / ms / 1e9);
    lt > 0 ? std::printf("  x%.3f of cuBLASLt's time\n", ms / lt) : std::printf("\n");
  }

  void compare_bits(const Shape& shape, int rows) {
    const bool f32 = shape.output == LinearOutput::kF32;
    const auto* row_major = weights(shape, 0);
    pack_rows(stream_, {.rows = row_major,
                        .count = shape.n,
                        .in_features = shape.k,
                        .out_features = shape.n,
                        .weights = packed_.data});
    const int64_t bytes = int64_t{rows} * shape.n * (f32 ? 4 : 2);
    DeviceArray<uint8_t> own(bytes);
    run_linear(stream_,
               {.weights = packed_.data,
                .out_features = shape.n,
                .in_features = shape.k,
                .x = x_.data,
                .x_stride = shape.k,
                .rows = rows,
                .output = f32 ? LinearOutput::kF32 : LinearOutput::kBf16,
                .out = own.data,
                .out_stride = shape.n,
                .residual = shape.residual ? residual_.data : nullptr,
                .residual_stride = shape.n},
               9, sms_);
    const LtLinear lt(rows, shape.n, shape.k, f32);
    DeviceArray<unsigned long long> different(1);
    int equal = 0;
    for (int algorithm = 0; algorithm < lt.num_algorithms(); ++algorithm) {
      out_.poison();
      lt.run(stream_, algorithm, x_.data, row_major, shape.residual ? residual_.data : nullptr, out_.data);
      cuda_check(cudaMemsetAsync(different.data, 0, 8, stream_), "cudaMemset");
      count_different<<<1024, 256, 0, stream_>>>(own.data, out_.data, bytes, different.data);
      unsigned long long count = 0;
      cuda_check(cudaMemcpyAsync(&count, different.data, 8, cudaMemcpyDeviceToHost, stream_), "cudaMemcpy");
      cuda_check(cudaStreamSynchronize(stream_), "compare_bits");
      equal += count == 0;
    }
    std::printf("  bits equal to those of %d of cuBLASLt's %d algorithms\n", equal, lt.num_algorithms());
  }

  LinearProblem problem_of(const Shape& shape, int rows, int leaves) const {
    return {.out_features = shape.n,
            .in_features = shape.k,
            .leaves = leaves,
            .x = x_.data,
            .x_stride = shape.k,
            .rows = rows,
            .output = shape.output,
            .out = out_.data,
            .out_stride = shape.output == LinearOutput::kGated ? shape.n / 2 : shape.n,
            .residual = shape.residual ? residual_.data : nullptr,
            .residual_stride = shape.n};
  }

  // run_linear and cuBLASLt's best algorithm (products alone: gate_up without its activation), replayed in turns, so
  // that clocks and temperature are the same for all.
  void time_in_turns(const Shape& shape, int rows) {
    const LtLinear lt(rows, shape.n, shape.k, shape.output == LinearOutput::kF32);
    const void* residual = shape.residual ? residual_.data : nullptr;
    const auto launch_lt = [&](int algorithm) {
      return
          [&, algorithm](int copy) { lt.run(stream_, algorithm, x_.data, weights(shape, copy), residual, out_.data); };
    };
    int best = 0;
    double least = 1e9;
    for (int algorithm = 0; algorithm < std::min(lt.num_algorithms(), 6); ++algorithm) {
      const double ms = median_ms(stream_, copies(shape, rows), launch_lt(algorithm), 4);
      if (ms < least) least = ms, best = algorithm;
    }
    std::vector<std::unique_ptr<Replay>> replays;
    replays.push_back(std::make_unique<Replay>(stream_, copies(shape, rows), launch_lt(best)));
    const std::vector<int> leaves = shape.tree ? std::vector<int>{1, 2, 4} : std::vector<int>{1};
    for (const int count : leaves)
      replays.push_back(std::make_unique<Replay>(stream_, copies(shape, rows), [&](int copy) {
        LinearProblem problem = problem_of(shape, rows, count);
        problem.weights = weights(shape, copy);
        run_linear(stream_, problem, 9, sms_);
      }));
    for (int turn = 0; turn < 8; ++turn)
      for (auto& replay : replays) replay->run();
    const double yardstick = replays[0]->median();
    print(shape, rows, "cuBLASLt", yardstick, yardstick);
    for (size_t i = 0; i < leaves.size(); ++i)
      print(shape, rows, concat("run_linear, leaves ", leaves[i]).c_str(), replays[i + 1]->median(), yardstick);
  }

  void time_shapes(const Shape& shape, int rows, int leaves) {
    LinearProblem problem = problem_of(shape, rows, leaves);
    const auto time = [&](const std::string& what, const std::function<void()>& launch) {
      const double ms = median_ms(stream_, copies(shape, rows), [&](int copy) {
        problem.weights = weights(shape, copy);
        launch();
      });
      print(shape, rows, what.c_str(), ms, 0);
    };
    if (rows <= kMaxStreamRows)
      for (int cluster = 1; cluster <= std::min(leaves, 2); cluster *= 2)
        for (const int blocks : {1, 4}) {
          const StreamShape stream = stream_with(problem, sms_, cluster, blocks);
          if (stream.blocks_in_stage != blocks) continue;
          time(concat("stream leaves ", leaves, " cluster ", cluster, " blocks ", blocks, " ring ", stream.stages, " (",
                      stream.in_flight, ")"),
               [&] { linear_stream(stream_, problem, stream); });
        }
    if (rows < 16) return;
    for (WgmmaShape one : wgmma_shapes(problem.output, leaves)) {
      if ((rows <= 64) != (one.tokens == 64) || (rows > 256 && one.tile_rows < 128)) continue;
      if (one.share > 1 && rows <= 128) continue;
      one = wgmma_with(problem, sms_, one);
      time(concat("wgmma leaves ", leaves, ": ", one.tokens, "x", one.tile_rows, " share ", one.share, " split ",
                  one.split),
           [&] { linear_wgmma(stream_, problem, one); });
    }
    const WgmmaShape chosen = choose_wgmma(problem, sms_);
    std::printf("    chosen: %dx%d share %d split %d grid %d\n", chosen.tokens, chosen.tile_rows, chosen.share,
                chosen.split, chosen.grid);
  }

  bool all_;
  std::vector<int> rows_;
  int most_, sms_ = 0;
  double rate_ = 0;
  cudaStream_t stream_{};
  DeviceArray<bf16> pool_, x_, residual_;
  DeviceArray<uint8_t> packed_, out_;
};

}  // namespace
}  // namespace rtp_llm::cuda::fixture

int main(int argc, char** argv) {
  std::vector<int> rows;
  const bool all = argc > 1 && !std::strcmp(argv[1], "all");
  for (int i = 1 + all; i < argc; ++i) rows.push_back(std::atoi(argv[i]));
  if (rows.empty()) rows = {1, 8, 16, 32, 64, 128, 256, 512, 2048, 8192};
  rtp_llm::cuda::fixture::Bench(rows, all).run();
}
