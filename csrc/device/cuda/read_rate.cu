// The rate at which this GPU reads its memory: what decode is measured against. The best of two ways to read that
// differ in what limits them: plain loads by all threads, and bulk copies into shared memory.
#include <algorithm>

#include "device/cuda/cuda_check.h"
#include "device/cuda/cuda_device.h"
#include "device/cuda/launch.h"
#include "device/cuda/ptx.cuh"

namespace rtp_llm::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kUnroll = 8;

// The sum is stored where `never` says, which is nowhere: the loads must stay.
__global__ void __launch_bounds__(kThreads) read_by_loads(const uint4* from, int64_t words, uint32_t* never) {
  uint32_t sum = 0;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (; i + (kUnroll - 1) * step < words; i += kUnroll * step) {
    uint4 values[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) values[k] = __ldcs(from + i + k * step);
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) sum ^= values[k].x ^ values[k].y ^ values[k].z ^ values[k].w;
  }
  if (never != nullptr) *never = sum;
}

constexpr int kChunkBytes = 16 * 1024;
constexpr int kStages = 12;

__global__ void read_by_copies(const uint8_t* from, int64_t chunks) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t ring[];
  __shared__ uint64_t full[kStages];
  if (threadIdx.x != 0) return;
  for (uint64_t& barrier : full) barrier_init(&barrier, 1);
  barrier_init_fence();
  const uint64_t policy = evict_first_policy();
  const auto issue = [&](int64_t index, int64_t chunk) {
    const int stage = static_cast<int>(index % kStages);
    barrier_expect(&full[stage], kChunkBytes);
    copy_bulk(shared_address(ring + stage * kChunkBytes), from + chunk * kChunkBytes, kChunkBytes, &full[stage],
              policy);
  };
  int64_t issued = 0, landed = 0;
  int64_t next = blockIdx.x;
  for (; issued < kStages && next < chunks; ++issued, next += gridDim.x) issue(issued, next);
  for (; landed < issued; ++landed) {
    barrier_wait(&full[landed % kStages], landed / kStages & 1);
    if (next < chunks) {
      issue(issued++, next);
      next += gridDim.x;
    }
  }
#endif
}

}  // namespace

double CudaDevice::read_rate(int64_t bytes, int rounds) {
  bind_thread();
  const Buffer memory = allocate(bytes, "read_rate");
  const auto measure = [&](auto run) {
    double best = 0;
    for (int round = 0; round <= rounds; ++round) {  // the first warms up
      const StreamEvent begin = record();
      run();
      const StreamEvent end = record();
      wait(end);
      if (round > 0) best = std::max(best, static_cast<double>(bytes) / seconds_between(begin, end));
    }
    return best;
  };
  double best = 0;
  for (int ctas : {1, 2, 4})
    best = std::max(best, measure([&] {
                      launch(stream(),
                             {.grid = dim3(ctas * properties_.num_sms), .block = dim3(kThreads), .dependent = false},
                             "read_rate", read_by_loads, static_cast<const uint4*>(memory.data()), bytes / 16,
                             static_cast<uint32_t*>(nullptr));
                    }));
  if (properties_.major < 9) return best;
  prepare_kernel(read_by_copies, kStages * kChunkBytes, "read_rate");
  return std::max(best, measure([&] {
                    launch(stream(),
                           {.grid = dim3(properties_.num_sms),
                            .block = dim3(32),
                            .shared_bytes = kStages * kChunkBytes,
                            .dependent = false},
                           "read_rate", read_by_copies, static_cast<const uint8_t*>(memory.data()),
                           bytes / kChunkBytes);
                  }));
}

}  // namespace rtp_llm::cuda
