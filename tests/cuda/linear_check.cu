// Checks the linears of the CUDA backend, without the engine around them.
//
//   linear_check [small]
//
// linear_plain against sums in double precision; then every kernel, in every configuration, at every number of rows and
// at any place among the rows, against linear_plain's bits on 2,048 rows. Outputs are poisoned before each run, inputs
// are drawn anew for each case. Prints a line a case; the exit status is 1 if one failed.
#include <cmath>
#include <cstring>
#include <ctime>
#include <memory>

#include "linear_fixture.cuh"

namespace rtp_llm::cuda::fixture {
namespace {

struct Case {
  int n, k, leaves;
  LinearOutput output;
  bool bias, residual;
  Activation activation = Activation::kSilu;
};

const char* name_of(LinearOutput output) {
  return output == LinearOutput::kBf16 ? "bf16" : output == LinearOutput::kF32 ? "f32" : "gated";
}

// Errors of out against double-precision sums: squares of difference and of reference.
__global__ void double_reference(const bf16* x, const bf16* w, const float* bias, const bf16* residual,
                                 const bf16* out16, const float* out32, int columns, int k, bool gated,
                                 double* squares) {
  const int column = blockIdx.x, row = blockIdx.y;
  const auto dot = [&](int w_row) {
    double sum = 0;
    for (int i = threadIdx.x; i < k; i += 32)
      sum +=
          static_cast<double>(__bfloat162float(x[int64_t{row} * k + i])) * __bfloat162float(w[int64_t{w_row} * k + i]);
    for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(~0u, sum, lane);
    return sum;
  };
  double expected = dot(column);
  const int packed = gated ? packed_row(column, 0) : column;
  if (bias != nullptr) expected += bias[packed];
  if (gated) {
    double up = dot(columns + column);
    if (bias != nullptr) up += bias[packed_row(column, 1)];
    expected = expected / (1 + exp(-expected)) * up;
  }
  const int64_t at = int64_t{row} * columns + column;
  if (residual != nullptr) expected += static_cast<double>(__bfloat162float(residual[at]));
  if (threadIdx.x != 0) return;
  const double got = out32 != nullptr ? out32[at] : __bfloat162float(out16[at]);
  atomicAdd(squares, (got - expected) * (got - expected));
  atomicAdd(squares + 1, expected * expected);
}

class Check {
 public:
  Check(const Case& which, int max_rows, uint32_t seed, int num_sms)
      : case_(which),
        num_sms_(num_sms),
        max_rows_(max_rows),
        columns_(which.output == LinearOutput::kGated ? which.n / 2 : which.n),
        element_(which.output == LinearOutput::kF32 ? 4 : 2),
        w_(int64_t{which.n} * which.k),
        packed_(packed_bytes(which.n, which.k)),
        x_(int64_t{max_rows} * which.k),
        residual_(int64_t{max_rows} * columns_),
        expected_(int64_t{max_rows} * columns_ * element_),
        out_(int64_t{max_rows} * columns_ * element_),
        bias_((which.n + 15) / 16 * 16),
        squares_(2),
        count_(1) {
    fill(w_, 0.02f, seed);
    fill(x_, 1.0f, seed + 1);
    fill(residual_, 1.0f, seed + 2);
    fill(bias_, 0.5f, seed + 3);
    cuda_check(cudaMemset(packed_.data, 0, packed_.count), "cudaMemset");  // what lies beyond N and K is zero
    PackRows rows{
        .rows = w_.data, .count = which.n, .in_features = which.k, .out_features = which.n, .weights = packed_.data};
    if (which.output == LinearOutput::kGated)
      for (rows.interleave = 0, rows.count = columns_; rows.interleave < 2; ++rows.interleave) {
        rows.rows = w_.data + int64_t{rows.interleave} * columns_ * which.k;
        pack_rows(0, rows);
      }
    else
      pack_rows(0, rows);
  }

  void run(const std::vector<int>& counts) {
    LinearProblem all = problem(0, max_rows_);
    all.out = expected_.data;
    expected_.poison();
    linear_plain(0, all);
    check_error();
    for (const int rows : counts) {
      if (rows > max_rows_) continue;
      const int first = static_cast<int>((rows * 7919u) % (max_rows_ - rows + 1));
      if (rows <= kMaxStreamRows) check_streams(first, rows);
      check_wgmmas(first, rows);
      compare("run_linear", first, rows, [&](const LinearProblem& one) { run_linear(0, one, 9, num_sms_); });
    }
    std::printf("N %6d K %6d leaves %d %-5s%s%s: %d runs, %d failed\n", case_.n, case_.k, case_.leaves,
                name_of(case_.output), case_.bias ? " bias" : "", case_.residual ? " residual" : "", runs_, failed_);
    std::fflush(stdout);
  }
  int failed() const { return failed_; }

 private:
  LinearProblem problem(int first, int rows) {
    return {.weights = packed_.data,
            .out_features = case_.n,
            .in_features = case_.k,
            .leaves = case_.leaves,
            .bias = case_.bias ? bias_.data : nullptr,
            .x = x_.data + int64_t{first} * case_.k,
            .x_stride = case_.k,
            .rows = rows,
            .output = case_.output,
            .activation = case_.activation,
            .out = out_.data,
            .out_stride = columns_,
            .residual = case_.residual ? residual_.data + int64_t{first} * columns_ : nullptr,
            .residual_stride = columns_};
  }

  void check_error() {
    cuda_check(cudaMemset(squares_.data, 0, 16), "cudaMemset");
    if (case_.activation != Activation::kSilu) return;
    double_reference<<<dim3(columns_, 64), 32>>>(
        x_.data, w_.data, case_.bias ? bias_.data : nullptr, case_.residual ? residual_.data : nullptr,
        reinterpret_cast<const bf16*>(expected_.data),
        element_ == 4 ? reinterpret_cast<const float*>(expected_.data) : nullptr, columns_, case_.k,
        case_.output == LinearOutput::kGated, squares_.data);
    double squares[2];
    cuda_check(cudaMemcpy(squares, squares_.data, 16, cudaMemcpyDeviceToHost), "double_reference");
    const double error = std::sqrt(squares[0] / squares[1]), limit = element_ == 4 ? 5e-5 : 6e-3;
    if (!(error <= limit)) {
      std::printf("  linear_plain: relative error %.3g > %.3g\n", error, limit);
      ++failed_;
    }
  }

  template <class Launch>
  void compare(const std::string& what, int first, int rows, Launch&& start) {
    LinearProblem one = problem(first, rows);
    cuda_check(cudaMemset(out_.data, 0x7f, out_.count), "cudaMemset");  // not what expected_ is poisoned with
    if (case_.residual && rows % 2 == 1) {                              // the residual may be the output
      cuda_check(cudaMemcpy(out_.data, one.residual, int64_t{rows} * columns_ * 2, cudaMemcpyDeviceToDevice), "copy");
      one.residual = reinterpret_cast<const bf16*>(out_.data);
    }
    start(one);
    cuda_check(cudaMemset(count_.data, 0, 8), "cudaMemset");
    const int64_t bytes = int64_t{rows} * columns_ * element_;
    count_different<<<256, 256>>>(out_.data, expected_.data + int64_t{first} * columns_ * element_, bytes, count_.data);
    unsigned long long different = 0;
    cuda_check(cudaMemcpy(&different, count_.data, 8, cudaMemcpyDeviceToHost), what.c_str());
    ++runs_;
    if (different == 0) return;
    ++failed_;
    std::printf("  %s, rows [%d, %d): %llu of %lld half words differ\n", what.c_str(), first, first + rows, different,
                static_cast<long long>(bytes / 2));
  }

  void check_streams(int first, int rows) {
    const auto stream = [&](const std::string& what, const StreamShape& shape) {
      compare("stream " + what, first, rows, [&](const LinearProblem& one) { linear_stream(0, one, shape); });
    };
    const LinearProblem one = problem(first, rows);
    StreamShape shape = choose_stream(one, num_sms_);
    stream("chosen", shape);
    if (case_.leaves > 1 && case_.output == LinearOutput::kBf16)
      for (int cluster = 1; cluster <= case_.leaves; cluster *= 2)
        for (const int blocks : {1, 4})
          stream(concat("cluster ", cluster, " blocks ", blocks), stream_with(one, num_sms_, cluster, blocks));
    if (case_.leaves == 1) {  // few CTAs: each takes several groups
      shape.tiles = std::min(shape.tiles, 3);
      shape.grid = 2;
      stream("grid 2", shape);
    }
  }

  void check_wgmmas(int first, int rows) {
    if (problem(first, rows).blocks() < case_.leaves) return;
    const auto wgmma = [&](const std::string& what, const WgmmaShape& shape) {
      const std::string name = concat("wgmma ", what, " ", shape.tokens, " x ", shape.tile_rows, ", share ",
                                      shape.share, ", split ", shape.split, ", grid ", shape.grid);
      compare(name, first, rows, [&](const LinearProblem& one) { linear_wgmma(0, one, shape); });
    };
    const LinearProblem one = problem(first, rows);
    wgmma("chosen", choose_wgmma(one, num_sms_));
    for (WgmmaShape shape : wgmma_shapes(case_.output, case_.leaves)) {
      shape = wgmma_with(one, num_sms_, shape);
      wgmma("", shape);
      if (shape.split > 1) continue;
      shape.grid = 4;  // few CTAs: each takes several tiles
      wgmma("few", shape);
    }
  }

  Case case_;
  int num_sms_, max_rows_, columns_, element_;
  int runs_ = 0, failed_ = 0;
  DeviceArray<bf16> w_;
  DeviceArray<uint8_t> packed_;
  DeviceArray<bf16> x_, residual_;
  DeviceArray<uint8_t> expected_, out_;
  DeviceArray<float> bias_;
  DeviceArray<double> squares_;
  DeviceArray<unsigned long long> count_;
};

int run_all(bool small) {
  cudaDeviceProp properties{};
  cuda_check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  const int sms = properties.multiProcessorCount;
  using enum LinearOutput;
  std::vector<Case> cases{{96, 320, 1, kBf16, true, true},    {96, 320, 2, kBf16, false, true},
                          {160, 512, 4, kBf16, false, true},  {104, 128, 1, kF32, true, false},
                          {320, 192, 1, kGated, true, false}, {48, 64, 4, kBf16, true, true},
                          {128, 64, 2, kBf16, false, true}};  // leaves without a block
  std::vector<int> counts{1, 5, 8, 13, 32, 33, 64, 100};
  int max_rows = 160;
  if (!small) {
    for (const int leaves : {1, 2, 4}) {
      cases.push_back({4096, 4096, leaves, kBf16, false, true});
      cases.push_back({4096, 12288, leaves, kBf16, false, true});
      cases.push_back({896, 4864, leaves, kBf16, true, true});
    }
    cases.push_back({6144, 4096, 1, kBf16, true, false});
    cases.push_back({1152, 896, 1, kBf16, true, false});
    cases.push_back({24576, 4096, 1, kGated, false, false});
    cases.push_back({9728, 896, 1, kGated, false, false, Activation::kGeluTanh});
    cases.push_back({2048, 1024, 1, kGated, true, false, Activation::kGelu});
    cases.push_back({151936, 1024, 1, kF32, false, false});
    cases.push_back({72, 72, 1, kBf16, true, true});
    cases.push_back({64, 64, 1, kGated, false, false});
    for (int rows = 1; rows <= 64; ++rows) counts.push_back(rows);
    for (const int rows : {128, 129, 256, 300, 512, 2048}) counts.push_back(rows);
    max_rows = 2048;
  }
  uint32_t seed = static_cast<uint32_t>(time(nullptr));
  std::printf("%s, %d SMs, seed %u\n", properties.name, sms, seed);
  int failed = 0;
  for (const Case& which : cases) {
    const bool large = int64_t{which.n} * which.k > (40 << 20);
    Check check(which, max_rows, seed += 17, sms);
    check.run(large ? std::vector<int>{1, 2, 7, 8, 16, 17, 31, 32, 33, 48, 64, 100, 128, 256, 2048} : counts);
    failed += check.failed();
  }
  std::printf(failed == 0 ? "all equal\n" : "%d FAILED\n", failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace rtp_llm::cuda::fixture

int main(int argc, char** argv) { return rtp_llm::cuda::fixture::run_all(argc > 1 && !std::strcmp(argv[1], "small")); }
