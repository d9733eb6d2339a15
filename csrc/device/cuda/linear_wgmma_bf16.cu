#include "device/cuda/linear_wgmma.cuh"

namespace rtp_llm::cuda::tiled {

bool start_bf16(cudaStream_t stream, const LinearProblem& problem, const WgmmaShape& shape) {
  return start_matching<LinearOutput::kBf16, TileConfig<128, 256, 2, 1, 1, true>, TileConfig<128, 192, 2, 1, 1, true>,
                        TileConfig<128, 128, 2, 1, 1, true>, TileConfig<128, 96, 2, 1, 1>, TileConfig<128, 64, 1, 1, 1>,
                        TileConfig<64, 64, 1, 1, 1>, TileConfig<128, 128, 2, 1, 2, true>, TileConfig<128, 128, 1, 2, 1>,
                        TileConfig<128, 64, 1, 2, 1>, TileConfig<64, 64, 1, 2, 1>, TileConfig<128, 128, 2, 1, 4>,
                        TileConfig<128, 128, 1, 2, 2>, TileConfig<128, 64, 1, 2, 2>, TileConfig<64, 64, 1, 2, 2>>(
      stream, problem, shape);
}

}  // namespace rtp_llm::cuda::tiled
