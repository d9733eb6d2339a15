// The reports of `compute-sanitizer --tool racecheck` on the linears and on decode attention with plain copies, as
// small as they get.
//
//   nvcc -std=c++20 -gencode=arch=compute_90a,code=sm_90a -Icsrc tests/cuda/racecheck_arrive.cu
//   compute-sanitizer --tool racecheck ./a.out {bulk, plain} {one, all}
//
// 32 lanes read a slot of shared memory, __syncwarp, then lane 0 tells the producer by an mbarrier arrive that the slot
// is free, and the producer fills it again, by a bulk copy or by cp.async of 32 lanes. __syncwarp orders the reads of
// all lanes before the arrive; the tool counts lane 0's reads only and reports the other 31 lanes' as racing with the
// second copy. Where all 32 lanes arrive, nothing is reported.
#include <cstdio>
#include <cstring>

#include "device/cuda/cuda_check.h"
#include "device/cuda/ptx.cuh"

using namespace rtp_llm::cuda;

constexpr int kWords = 128;  // 16 bytes a lane

__global__ void reuse(const uint32_t* from, uint32_t* out, bool plain, bool all_arrive) {
  __shared__ __align__(128) uint32_t slot[kWords];
  __shared__ uint64_t full, empty;
  if (threadIdx.x == 0) {
    barrier_init(&full, plain ? 32 : 1);
    barrier_init(&empty, all_arrive ? 32 : 1);
    barrier_init_fence();
  }
  __syncthreads();
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x >= 32) {
      const int lane = threadIdx.x - 32;
      if (round > 0) barrier_wait(&empty, 0);
      if (plain) {
        copy_async_16(shared_address(slot + lane * 4), from + round * kWords + lane * 4);
        barrier_arrive_after_copies(&full);
      } else if (lane == 0) {
        barrier_expect(&full, sizeof slot);
        copy_bulk(shared_address(slot), from + round * kWords, sizeof slot, &full);
      }
      continue;
    }
    barrier_wait(&full, round);
    const uint32_t value = slot[threadIdx.x * 4 + 3];
    out[round * 32 + threadIdx.x] = value;
    __syncwarp();
    const uint32_t never = value == 0xffffffffu ? 8 : 0;  // the arrive waits for the load
    if (all_arrive || threadIdx.x == 0) barrier_arrive(shared_address(&empty) + never);
  }
}

int main(int argc, char** argv) {
  if (argc != 3) return std::printf("usage: racecheck_arrive {bulk, plain} {one, all}\n"), 2;
  uint32_t *from, *out, host[2 * kWords], got[64];
  for (uint32_t i = 0; i < 2 * kWords; ++i) host[i] = i;
  cuda_check(cudaMalloc(&from, sizeof host), "cudaMalloc");
  cuda_check(cudaMalloc(&out, sizeof got), "cudaMalloc");
  cuda_check(cudaMemcpy(from, host, sizeof host, cudaMemcpyHostToDevice), "cudaMemcpy");
  reuse<<<1, 64>>>(from, out, !std::strcmp(argv[1], "plain"), !std::strcmp(argv[2], "all"));
  cuda_check(cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost), "reuse");
  for (uint32_t i = 0; i < 64; ++i)
    if (got[i] != 4 * i + 3) return std::printf("word %u is %u\n", i, got[i]), 1;
  std::printf("right\n");
}
