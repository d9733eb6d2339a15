#include "device/cuda/linear_wgmma.cuh"

namespace rtp_llm::cuda::tiled {

// A head lies whole in a tile.
bool start_roped(cudaStream_t stream, const LinearProblem& problem, const WgmmaShape& shape) {
  return start_matching<LinearOutput::kRoped, TileConfig<128, 256, 2, 1, 1, true>, TileConfig<128, 128, 2, 1, 1, true>>(
      stream, problem, shape);
}

}  // namespace rtp_llm::cuda::tiled
