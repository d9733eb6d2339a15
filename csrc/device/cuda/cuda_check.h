// cuda_check: every call of the CUDA runtime is judged here.
#pragma once

#include <cuda_runtime.h>

#include "tensor/check.h"

namespace rtp_llm::cuda {

// Throws Error with CUDA's name and words for a status that isn't success.
inline void cuda_check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) [[likely]]
    return;
  throw Error(concat("CUDA: ", what, ": ", cudaGetErrorName(status), ": ", cudaGetErrorString(status)));
}

}  // namespace rtp_llm::cuda
