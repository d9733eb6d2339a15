// Sums over a CTA in one order, and rows of bf16 or f32 in pieces of 8.
#pragma once

#include "device/cuda/ptx.cuh"

namespace rtp_llm::cuda {

// 8 elements as they lie in memory.
template <class T>
struct Raw8 {
  static constexpr int kWords = sizeof(T) / 2;  // of 16 bytes
  uint4 words[kWords];

  // REQUIRES: 16-byte alignment for bf16, 32 for f32.
  __device__ __forceinline__ void load(const T* at) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = load_16(at + i * (8 / kWords));
  }
  __device__ __forceinline__ void unpack(float (&to)[8]) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const uint32_t raw[4] = {words[i].x, words[i].y, words[i].z, words[i].w};
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if constexpr (sizeof(T) == 2) {
          to[2 * k] = low_bf16(raw[k]);
          to[2 * k + 1] = high_bf16(raw[k]);
        } else {
          to[4 * i + k] = __uint_as_float(raw[k]);
        }
    }
  }
};
// 8 elements from `at` as f32.
template <class T>
__device__ __forceinline__ void load_8(const T* at, float (&to)[8]) {
  Raw8<T> raw;
  raw.load(at);
  raw.unpack(to);
}
__device__ __forceinline__ void store_8(bf16* at, const float (&from)[8]) {
  *reinterpret_cast<uint4*>(at) = make_uint4(pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]),
                                             pack_bf16(from[4], from[5]), pack_bf16(from[6], from[7]));
}
__device__ __forceinline__ void store_8(float* at, const float (&from)[8]) {
  reinterpret_cast<float4*>(at)[0] = make_float4(from[0], from[1], from[2], from[3]);
  reinterpret_cast<float4*>(at)[1] = make_float4(from[4], from[5], from[6], from[7]);
}

__device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_f32(float x) { return x; }
template <class T>
__device__ __forceinline__ T from_f32(float x) {
  if constexpr (sizeof(T) == 2)
    return __float2bfloat16_rn(x);
  else
    return x;
}

// The sum of `value` over the CTA's threads, in every thread: a butterfly in each warp, then the warps in order (absent
// ones add zeros, which change no bit). REQUIRES: blockDim.x a multiple of 32, at most 512. Contains two CTA barriers.
__device__ __forceinline__ float sum_over_cta(float value) {
  constexpr int kWarps = 16;
  __shared__ float4 of_warp[kWarps / 4];
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value = __fadd_rn(value, __shfl_xor_sync(~0u, value, lane));
  __syncthreads();  // an earlier sum may still be read
  if (threadIdx.x % 32 == 0) reinterpret_cast<float*>(of_warp)[threadIdx.x / 32] = value;
  const int absent = threadIdx.x + blockDim.x / 32;
  if (absent < kWarps) reinterpret_cast<float*>(of_warp)[absent] = 0.0f;
  __syncthreads();
  float total = of_warp[0].x;
#pragma unroll
  for (int i = 0; i < kWarps / 4; ++i) {
    const float4 four = of_warp[i];
    if (i > 0) total = __fadd_rn(total, four.x);
    total = __fadd_rn(__fadd_rn(__fadd_rn(total, four.y), four.z), four.w);
  }
  return total;
}

}  // namespace rtp_llm::cuda
