// Times the linears on the shapes of Qwen3-8B: graphs of launches over distinct weights, medians of replays, beside the
// read rate and cuBLASLt's best algorithm that keeps the bits, of the same run.
//
//   linear_bench [rows ...]      (1 8 16 32 64 128 256 512 2048 8192)
//
// A line a kernel and configuration: microseconds a launch, TB/s of weights and the fraction of the read rate, TFLOP/s.
// Before them, how many of cuBLASLt's algorithms give run_linear's bits (bf16 or f32 out, with the residual).
#include <algorithm>
#include <cstdlib>
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

class Timer {
 public:
  Timer() {
    cuda_check(cudaStreamCreate(&stream), "stream");
    cudaEventCreate(&begin_);
    cudaEventCreate(&end_);
  }
  // Median milliseconds of replays of a graph of launch(0) ... launch(count - 1), a launch.
  double median_ms(int count, const std::function<void(int)>& launch) {
    cudaGraph_t graph;
    cudaGraphExec_t runnable;
    cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < count; ++i) launch(i);
    cuda_check(cudaStreamEndCapture(stream, &graph), "capture");
    cuda_check(cudaGraphInstantiate(&runnable, graph, 0), "instantiate");
    std::vector<float> times;
    float total = 0;
    for (int i = 0; i < 12 && (i < 4 || total < 60); ++i) {
      cudaEventRecord(begin_, stream);
      cuda_check(cudaGraphLaunch(runnable, stream), "replay");
      cudaEventRecord(end_, stream);
      cuda_check(cudaEventSynchronize(end_), "replay");
      float ms;
      cudaEventElapsedTime(&ms, begin_, end_);
      total += ms;
      if (i > 0) times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    cudaGraphExecDestroy(runnable);
    cudaGraphDestroy(graph);
    return times[times.size() / 2] / count;
  }
  cudaStream_t stream{};

 private:
  cudaEvent_t begin_{}, end_{};
};

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
  explicit Bench(std::vector<int> rows)
      : rows_(std::move(rows)),
        most_(*std::max_element(rows_.begin(), rows_.end())),
        pool_(kPoolBytes / 2),
        x_(int64_t{most_} * 12288),
        residual_(int64_t{most_} * 4096),
        packed_(packed_bytes(151936, 4096)),
        out_(std::max(int64_t{most_} * 24576 * 2, int64_t{256} * 151936 * 4)) {
    cudaDeviceProp properties{};
    cuda_check(cudaGetDeviceProperties(&properties, 0), "properties");
    sms_ = properties.multiProcessorCount;
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
        const double lt = time_cublas(shape, rows);
        for (const int leaves : shape.tree ? std::vector<int>{1, 2, 4} : std::vector<int>{1})
          time_own(shape, rows, leaves, lt);
        std::fflush(stdout);
      }
  }

 private:
  double read_rate() {
    double best = 0;
    for (const int grid : {264, 528, 1056}) {
      const double ms = timer_.median_ms(1, [&](int) {
        read_all<<<grid, 512, 0, timer_.stream>>>(reinterpret_cast<const uint4*>(pool_.data), kPoolBytes / 16,
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
    std::printf("  %-44s %9.2f us %6.3f TB/s %5.3f %7.1f TFLOP/s  x%.3f of cuBLASLt's time\n", what, ms * 1e3, rate,
                rate / rate_, 2.0 * rows * shape.n * shape.k / ms / 1e9, ms / lt);
  }

  void compare_bits(const Shape& shape, int rows) {
    const bool f32 = shape.output == LinearOutput::kF32;
    const auto* row_major = weights(shape, 0);
    pack_rows(timer_.stream, {.rows = row_major,
                              .count = shape.n,
                              .in_features = shape.k,
                              .out_features = shape.n,
                              .weights = packed_.data});
    const int64_t bytes = int64_t{rows} * shape.n * (f32 ? 4 : 2);
    DeviceArray<uint8_t> own(bytes);
    run_linear(timer_.stream,
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
      lt.run(timer_.stream, algorithm, x_.data, row_major, shape.residual ? residual_.data : nullptr, out_.data);
      cuda_check(cudaMemsetAsync(different.data, 0, 8, timer_.stream), "cudaMemset");
      count_different<<<1024, 256, 0, timer_.stream>>>(own.data, out_.data, bytes, different.data);
      unsigned long long count = 0;
      cuda_check(cudaMemcpyAsync(&count, different.data, 8, cudaMemcpyDeviceToHost, timer_.stream), "cudaMemcpy");
      cuda_check(cudaStreamSynchronize(timer_.stream), "compare_bits");
      equal += count == 0;
    }
    std::printf("  bits equal to those of %d of cuBLASLt's %d algorithms\n", equal, lt.num_algorithms());
  }

  // Products alone: gate_up without its activation.
  double time_cublas(const Shape& shape, int rows) {
    const LtLinear lt(rows, shape.n, shape.k, shape.output == LinearOutput::kF32);
    double best = 1e9;
    for (int algorithm = 0; algorithm < std::min(lt.num_algorithms(), 6); ++algorithm)
      best = std::min(best, timer_.median_ms(copies(shape, rows), [&](int copy) {
        lt.run(timer_.stream, algorithm, x_.data, weights(shape, copy), shape.residual ? residual_.data : nullptr,
               out_.data);
      }));
    print(shape, rows, concat("cuBLASLt, best of ", lt.num_algorithms()).c_str(), best, best);
    return best;
  }

  void time_own(const Shape& shape, int rows, int leaves, double lt) {
    LinearProblem problem{.out_features = shape.n,
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
    const auto time = [&](const std::string& what, const std::function<void()>& launch) {
      const double ms = timer_.median_ms(copies(shape, rows), [&](int copy) {
        problem.weights = weights(shape, copy);
        launch();
      });
      print(shape, rows, what.c_str(), ms, lt);
    };
    if (rows <= kMaxStreamRows)
      for (int cluster = 1; cluster <= std::min(leaves, 2); cluster *= 2)
        for (const int blocks : {1, 4}) {
          const StreamShape stream = stream_with(problem, sms_, cluster, blocks);
          if (stream.blocks_in_stage != blocks) continue;
          time(concat("stream leaves ", leaves, " cluster ", cluster, " blocks ", blocks, " ring ", stream.stages, " (",
                      stream.in_flight, ")"),
               [&] { linear_stream(timer_.stream, problem, stream); });
        }
    if (rows >= 16) time_wgmmas(problem, leaves, time);
    time(concat("run_linear, leaves ", leaves), [&] { run_linear(timer_.stream, problem, 9, sms_); });
  }

  template <class Time>
  void time_wgmmas(const LinearProblem& problem, int leaves, Time&& time) {
    const int rows = problem.rows;
    for (WgmmaShape one : wgmma_shapes(problem.output, leaves)) {
      if ((rows <= 64) != (one.tokens == 64) || (rows > 256 && one.tile_rows < 128)) continue;
      if (one.share > 1 && rows <= 128) continue;
      one = wgmma_with(problem, sms_, one);
      time(concat("wgmma leaves ", leaves, ": ", one.tokens, "x", one.tile_rows, " share ", one.share, " split ",
                  one.split),
           [&] { linear_wgmma(timer_.stream, problem, one); });
    }
  }

  std::vector<int> rows_;
  int most_, sms_ = 0;
  double rate_ = 0;
  Timer timer_;
  DeviceArray<bf16> pool_, x_, residual_;
  DeviceArray<uint8_t> packed_, out_;
};

}  // namespace
}  // namespace rtp_llm::cuda::fixture

int main(int argc, char** argv) {
  std::vector<int> rows;
  for (int i = 1; i < argc; ++i) rows.push_back(std::atoi(argv[i]));
  if (rows.empty()) rows = {1, 8, 16, 32, 64, 128, 256, 512, 2048, 8192};
  rtp_llm::cuda::fixture::Bench(rows).run();
}
