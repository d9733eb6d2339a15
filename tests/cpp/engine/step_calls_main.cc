// step_calls: fails if the engine thread allocates in 1,000 decode steps.
#include "rig.h"
#include "step_calls.h"

namespace rtp_llm::testing {
namespace {

int run() {
  constexpr int kBatch = 8, kSteps = 1000;
  Dl_info info{};
  check(dladdr(reinterpret_cast<void*>(&supported_isas), &info) != 0, "librtp_core.so not found");
  const auto device = open_device("cpu", {}, std::filesystem::path(info.dli_fname).parent_path().string());
  ModelConfig model = rig_model(DType::kBF16);
  model.max_position_embeddings = 2048;
  Weights weights(*device, model);
  write_rig_weights(weights, std::nullopt);
  Decoder decoder(*device, weights);
  const EngineConfig config{.max_num_seqs = kBatch, .num_kv_blocks = 800, .kv_dtype = DType::kBF16};
  WatchedDecode(*device, decoder, config).run(kBatch, 40, kSteps);
  return judge(kSteps) ? 0 : 1;
}

}  // namespace
}  // namespace rtp_llm::testing

int main() {
  try {
    return rtp_llm::testing::run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
