// leaves [ISA]: what it costs on the CPU to sum o and down over K as a tree of 2 or 4 leaves: all linears of layers of
// Qwen2.5-0.5B's shape (bf16, one thread) with each number in turn, thread CPU time against one leaf's, median of
// pairs.
#include <dlfcn.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "device/device.h"
#include "device/ops.h"

namespace {

using namespace rtp_llm;

constexpr int64_t kHidden = 896, kInter = 4864, kQkv = 1152, kLayers = 6, kMaxRows = 512;
constexpr int kPairs = 41;
constexpr int kLeaves[] = {1, 2, 4};

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

std::unique_ptr<PackedLinear> random_weight(Ops& ops, int64_t rows, int64_t features, bool row_parallel) {
  auto packer = ops.pack({.name = "weight",
                          .in_features = features,
                          .parts = {{"all", rows}},
                          .dtype = DType::kBF16,
                          .row_parallel = row_parallel});
  std::vector<uint16_t> values(static_cast<size_t>(rows * features));
  uint32_t state = 1;
  for (uint16_t& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<uint16_t>(0x3c00u | (state >> 16 & 0x80ffu));
  }
  packer->write_rows(0, 0, make_tensor(values.data(), DType::kBF16, {rows, features}));
  return packer->finish();
}

// A device, its layers, and activations of kMaxRows rows.
class Run {
 public:
  Run(const std::string& isa, int leaves, const std::string& libraries)
      : device_(open_device("cpu", {.isa = isa, .tree_leaves = leaves}, libraries)),
        memory_(device_->allocate(kMaxRows * (kHidden * 6 + kQkv * 4 + kInter * 10), "activations")) {
    for (int64_t i = 0; i < kLayers; ++i)
      layers_.push_back({random_weight(ops(), kQkv, kHidden, false), random_weight(ops(), kHidden, kHidden, true),
                         random_weight(ops(), 2 * kInter, kHidden, false),
                         random_weight(ops(), kHidden, kInter, true)});
  }

  double seconds(int64_t rows) {
    auto* at = static_cast<uint8_t*>(memory_.data());
    const auto take = [&](DType dtype, int64_t width) {
      const Tensor x = make_tensor(at, dtype, {rows, width});
      at += rows * width * size_of(dtype);
      return x;
    };
    const Tensor normed = take(DType::kBF16, kHidden), stream = take(DType::kF32, kHidden),
                 qkv = take(DType::kF32, kQkv), gate_up = take(DType::kF32, 2 * kInter),
                 activated = take(DType::kBF16, kInter);
    const double begin = thread_seconds();
    for (const Layer& layer : layers_) {
      ops().linear({.x = normed, .weight = layer.qkv.get(), .out = qkv});
      ops().linear({.x = normed, .weight = layer.o.get(), .out = stream, .residual = stream});
      ops().linear({.x = normed, .weight = layer.gate_up.get(), .out = gate_up});
      ops().linear({.x = activated, .weight = layer.down.get(), .out = stream, .residual = stream});
    }
    return thread_seconds() - begin;
  }

 private:
  struct Layer {
    std::unique_ptr<PackedLinear> qkv, o, gate_up, down;
  };
  Ops& ops() { return device_->ops(); }

  std::unique_ptr<Device> device_;
  Buffer memory_;
  std::vector<Layer> layers_;
};

}  // namespace

int main(int argc, char** argv) {
  Dl_info info{};
  dladdr(reinterpret_cast<void*>(&supported_isas), &info);
  const std::string libraries = std::filesystem::absolute(info.dli_fname).parent_path().string();
  for (const std::string& isa : argc > 1 ? std::vector<std::string>{argv[1]} : supported_isas()) {
    std::vector<std::unique_ptr<Run>> runs;
    for (int leaves : kLeaves) runs.push_back(std::make_unique<Run>(isa, leaves, libraries));
    for (int64_t rows : {int64_t{1}, int64_t{8}, int64_t{64}, kMaxRows}) {
      std::vector<std::vector<double>> ratios(runs.size());
      double best = 1e30;
      for (int pair = 0; pair < kPairs; ++pair) {
        const double one = runs[0]->seconds(rows);
        best = std::min(best, one);
        for (size_t i = 1; i < runs.size(); ++i) ratios[i].push_back(runs[i]->seconds(rows) / one);
      }
      std::printf("%s, %ld rows: one leaf %.3f ms at best", isa.c_str(), static_cast<long>(rows), best * 1e3);
      for (size_t i = 1; i < runs.size(); ++i) {
        std::ranges::sort(ratios[i]);
        std::printf(", %d leaves %+.1f%% (quartiles %+.1f, %+.1f)", kLeaves[i], 100 * (ratios[i][kPairs / 2] - 1),
                    100 * (ratios[i][kPairs / 4] - 1), 100 * (ratios[i][3 * kPairs / 4] - 1));
      }
      std::printf("\n");
      std::fflush(stdout);
    }
  }
}
