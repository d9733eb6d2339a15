#include "device/cuda/linear_wgmma.cuh"

namespace rtp_llm::cuda::tiled {

bool start_gated(cudaStream_t stream, const LinearProblem& problem, const WgmmaShape& shape) {
  return start_matching<LinearOutput::kGated, TileConfig<128, 256, 2, 1, 1, true>, TileConfig<128, 192, 2, 1, 1, true>,
                        TileConfig<128, 192, 1, 1, 1>, TileConfig<64, 192, 1, 1, 1>, TileConfig<128, 224, 2, 1, 1>,
                        TileConfig<128, 224, 1, 1, 1>, TileConfig<64, 224, 1, 1, 1>>(stream, problem, shape);
}

}  // namespace rtp_llm::cuda::tiled
