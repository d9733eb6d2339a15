#include "device/cuda/linear_stream.cuh"

namespace rtp_llm::cuda::streaming {

template void start_stream<LinearOutput::kBf16>(cudaStream_t, int, const StreamParameters&);

}  // namespace rtp_llm::cuda::streaming
