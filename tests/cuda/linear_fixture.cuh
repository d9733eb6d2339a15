// What the check and the benchmark of the linears share: random operands, a double-precision reference, comparisons.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "device/cuda/cuda_check.h"
#include "device/cuda/linear.h"

namespace rtp_llm::cuda::fixture {

using bf16 = __nv_bfloat16;

template <class T>
struct DeviceArray {
  T* data = nullptr;
  int64_t count = 0;
  explicit DeviceArray(int64_t count) : count(count) {
    cuda_check(cudaMalloc(&data, std::max<int64_t>(count, 1) * sizeof(T)), "cudaMalloc");
  }
  DeviceArray(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data); }
  void poison() { cuda_check(cudaMemset(data, 0xff, count * sizeof(T)), "cudaMemset"); }  // NaN
};

__device__ inline uint32_t hash(uint32_t x) {
  x = (x ^ x >> 16) * 0x7feb352dU;
  x = (x ^ x >> 15) * 0x846ca68bU;
  return x ^ x >> 16;
}

template <class T>
__global__ void fill_normal(T* to, int64_t count, float deviation, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    const uint32_t a = hash(static_cast<uint32_t>(i) * 2 + seed);
    const uint32_t b = hash(static_cast<uint32_t>(i) * 2 + 1 + seed * 7919u + static_cast<uint32_t>(i >> 31));
    const float radius = sqrtf(-2.0f * logf(((a >> 8) + 0.5f) * (1.0f / 16777216.0f)));
    to[i] = static_cast<T>(deviation * radius * cospif(2.0f * (b >> 8) * (1.0f / 16777216.0f)));
  }
}

template <class T>
void fill(DeviceArray<T>& array, float deviation, uint32_t seed) {
  fill_normal<<<2048, 256>>>(array.data, array.count, deviation, seed);
  cuda_check(cudaGetLastError(), "fill_normal");
}

// Half words of a and b that are not the same.
static __global__ void count_different(const uint8_t* a, const uint8_t* b, int64_t bytes, unsigned long long* count) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < bytes / 2; i += int64_t{gridDim.x} * blockDim.x)
    if (reinterpret_cast<const uint16_t*>(a)[i] != reinterpret_cast<const uint16_t*>(b)[i]) atomicAdd(count, 1ull);
}

}  // namespace rtp_llm::cuda::fixture
