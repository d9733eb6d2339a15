// Rows of bf16 between memory and the four lanes of a quad, as wgmma and mma leave them: lane t has the neighbours 2t
// and 2t + 1 of each 8 columns. 16 bytes a lane in memory, so a quad takes 32 columns at once.
#pragma once

#include "device/cuda/ptx.cuh"

namespace rtp_llm::cuda {

// Words of four lanes exchanged: word i of lane t becomes word t of lane i. Its own inverse.
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {
    const bool upper = t & distance;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & distance) continue;
      const uint32_t sent = upper ? words[i] : words[i + distance];
      const uint32_t got = __shfl_xor_sync(~0u, sent, distance);
      if (upper)
        words[i] = got;
      else
        words[i + distance] = got;
    }
  }
}

// A row of 32 features in four blocks of 8, two neighbours a lane, to 16 contiguous bytes a lane; and back, all but the
// exchange.
__device__ __forceinline__ void load_quad(const bf16* row, bool valid, uint32_t (&words)[4]) {
  const uint4 raw = valid ? *reinterpret_cast<const uint4*>(row + threadIdx.x % 4 * 8) : uint4{};
  words[0] = raw.x, words[1] = raw.y, words[2] = raw.z, words[3] = raw.w;
}
__device__ __forceinline__ void store_quad(bf16* row, bool valid, uint32_t (&words)[4]) {
  transpose_quad(words);
  if (valid) *reinterpret_cast<uint4*>(row + threadIdx.x % 4 * 8) = {words[0], words[1], words[2], words[3]};
}

}  // namespace rtp_llm::cuda
