// launch: how every kernel of this backend is started.
//
// Programmatic dependent launch: a kernel may start while its predecessor on the stream still runs, and waits for it
// by wait_for_predecessor() (ptx.cuh) before it touches what others write. Each kernel must call that wait in every
// CTA, also where it needs nothing: order is transitive only over kernels that wait.
//
// Before its wait a kernel may read what it finds as it was when the step's first kernel began: weights, slots, KV of
// earlier steps. Any number of kernels may be under way at once, so what any kernel of the same step writes is read
// behind the wait alone. A step's first kernel, embedding, is not dependent; update_slots and zero_blocks, before it,
// let no successor start early.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "device/cuda/cuda_check.h"

namespace rtp_llm::cuda {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // dynamic
  bool dependent = true;    // programmatic dependent launch
  int cluster = 1;          // CTAs along x that start together
};

template <class... Parameters, class... Args>
void launch(cudaStream_t stream, const LaunchShape& shape, const char* name, void (*kernel)(Parameters...),
            Args&&... args) {
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (shape.dependent) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  cuda_check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Args>(args))...), name);
}

// Says once for each GPU that it is the first time. Thread-safe.
class OncePerGpu {
 public:
  bool first() {
    int gpu = 0;
    cuda_check(cudaGetDevice(&gpu), "cudaGetDevice");
    const uint64_t bit = uint64_t{1} << gpu % 64;
    return (seen_.fetch_or(bit) & bit) == 0;
  }

 private:
  std::atomic<uint64_t> seen_{0};
};

// Once a kernel and GPU, before its first launch: its dynamic shared memory, and the largest carve-out for all kernels
// alike, so that kernels of different sizes share an SM (a change of carve-out waits for an idle SM).
template <class Kernel>
void prepare_kernel(Kernel kernel, size_t shared_bytes, const char* name) {
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100), name);
  if (shared_bytes > 48 * 1024)
    cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
        name);
}

}  // namespace rtp_llm::cuda
