// The one report of `compute-sanitizer --tool racecheck` on the linears, as small as it gets.
//
//   nvcc -std=c++20 -gencode=arch=compute_90a,code=sm_90a -Icsrc tests/cuda/racecheck_arrive.cu
//
// 32 lanes read a slot of shared memory, __syncwarp, then lane 0 tells the producer by an mbarrier arrive that the slot
// is free, and the producer fills it again by a bulk copy. __syncwarp orders the reads of all lanes before the arrive;
// the tool counts lane 0's reads only and reports the other 31 lanes' as racing with the second copy. With an argument
// all 32 lanes arrive, and nothing is reported.
#include <cstdio>

#include "device/cuda/cuda_check.h"
#include "device/cuda/ptx.cuh"

using namespace rtp_llm::cuda;

__global__ void reuse(const uint32_t* from, uint32_t* out, bool all_arrive) {
  __shared__ __align__(128) uint32_t slot[32];
  __shared__ uint64_t full, empty;
  if (threadIdx.x == 0) {
    barrier_init(&full, 1);
    barrier_init(&empty, all_arrive ? 32 : 1);
    barrier_init_fence();
  }
  __syncthreads();
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x == 32) {
      if (round > 0) barrier_wait(&empty, 0);
      barrier_expect(&full, sizeof slot);
      copy_bulk(shared_address(slot), from + round * 32, sizeof slot, &full);
    }
    if (threadIdx.x >= 32) continue;
    barrier_wait(&full, round);
    const uint32_t value = slot[threadIdx.x];
    out[round * 32 + threadIdx.x] = value;
    __syncwarp();
    const uint32_t never = value == 0xffffffffu ? 8 : 0;  // the arrive waits for the load
    if (all_arrive || threadIdx.x == 0) barrier_arrive(shared_address(&empty) + never);
  }
}

int main(int argc, char**) {
  uint32_t *from, *out, host[64];
  for (uint32_t i = 0; i < 64; ++i) host[i] = i;
  cuda_check(cudaMalloc(&from, sizeof host), "cudaMalloc");
  cuda_check(cudaMalloc(&out, sizeof host), "cudaMalloc");
  cuda_check(cudaMemcpy(from, host, sizeof host, cudaMemcpyHostToDevice), "cudaMemcpy");
  reuse<<<1, 64>>>(from, out, argc > 1);
  cuda_check(cudaMemcpy(host, out, sizeof host, cudaMemcpyDeviceToHost), "reuse");
  for (uint32_t i = 0; i < 64; ++i)
    if (host[i] != i) return std::printf("word %u is %u\n", i, host[i]), 1;
  std::printf("right\n");
}
