// Staging: where a tile's sums wait while the next tile is multiplied. A consumer warpgroup lays them into shared
// memory, and a warp beside the producers finishes them: the activation, the residual, or norm and rotation of heads,
// and stores of whole rows.
#pragma once

#include "device/cuda/linear_epilogue.cuh"
#include "device/cuda/rope_store.cuh"

namespace rtp_llm::cuda::tiled {

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Of one warpgroup: 64 tokens x kColumns rows of W. Sums wait as bf16, rounded as they are to be; kF32: as they are,
// for a residual. Chunks of 8 columns are swizzled by their row, so neither side has bank conflicts to speak of.
template <LinearOutput kOutput, int kColumns, bool kF32>
struct Staging {
  static constexpr int kChunkBytes = kF32 ? 32 : 16, kRowBytes = kColumns / 8 * kChunkBytes;
  static constexpr int kBytes = 64 * kRowBytes;
  static_assert(kColumns % 64 == 0);  // or swizzled chunks would reach the next row

  uint32_t at;             // in shared memory
  uint64_t *full, *empty;  // arrivals: the warpgroup's 4 warps; the finishing warp

  __device__ uint32_t place(int row, int chunk) const {
    return at + row * kRowBytes + (chunk ^ (row & 7)) * kChunkBytes;
  }

  // By the warpgroup, sums as wgmma leaves them.
  __device__ void put(const float (&sum)[kColumns / 2], uint32_t parity) const {
    lay(sum, parity);
    say_full();
  }
  __device__ void say_full() const {
    if (threadIdx.x % 32 == 0) barrier_arrive(shared_address(full));
  }
  // Each warp its 16 rows, for itself.
  __device__ void lay(const float (&sum)[kColumns / 2], uint32_t parity) const {
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 % 4 * 16;
    barrier_wait(empty, parity ^ 1);
    if constexpr (kF32) {
#pragma unroll
      for (int i = 0; i < kColumns / 8; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          store_shared_8(place(first + lane / 4 + half * 8, i) + lane % 4 * 8, sum[4 * i + 2 * half],
                         sum[4 * i + 2 * half + 1]);
    } else {
      const uint32_t begin = place(first + lane % 16, lane / 16);  // from it chunk 2i lies a constant away, or xor one
#pragma unroll
      for (int i = 0; i < kColumns / 16; ++i) {
        uint32_t words[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) words[k] = pack_bf16(sum[8 * i + 2 * k], sum[8 * i + 2 * k + 1]);
        store_matrices((begin ^ i % 4 * 32) + i / 4 * 128, words);
      }
    }
    __syncwarp();
  }

  // By one warp. REQUIRES: with kGated the activation is silu.
  __device__ void finish(const Epilogue& p, const RopeStoreProblem& rope, int first_token, int first_row,
                         uint32_t parity) const {
    barrier_wait(full, parity);
    if constexpr (kOutput == LinearOutput::kGated)
      activate_all(p, first_token, first_row);
    else if constexpr (kOutput == LinearOutput::kRoped)
      rope_rows<64>(rope, first_token, first_row, 0);
    else
      store_all(p, first_token, first_row);
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(shared_address(empty));
  }

  // By one warp: the heads of kRows rows from `first` on, which it may read.
  template <int kRows>
  __device__ void rope_rows(const RopeStoreProblem& p, int first_token, int first_column, int first) const {
    p.kv.head_dim == 128 ? rope_heads<kRows, 128>(p, first_token, first_column, first)
                         : rope_heads<kRows, 64>(p, first_token, first_column, first);
  }

 private:
  // A lane keeps to one head of the tile.
  template <int kRows, int kHeadDim>
  __device__ void rope_heads(const RopeStoreProblem& p, int first_token, int first_column, int first) const {
    constexpr int kLanes = RopeHead<kHeadDim>::kLanes, kAtOnce = 32 / kLanes, kHeads = kColumns / kHeadDim;
    static_assert(kColumns % kHeadDim == 0 && kAtOnce % kHeads == 0);
    const int vector = threadIdx.x % 32 / kLanes, lane = threadIdx.x % kLanes;
    const int heads = p.num_heads + 2 * p.kv.num_heads, in_tile = vector % kHeads;
    const int index = first_column / kHeadDim + in_tile, chunk = in_tile * (kHeadDim / 8) + lane;
    const RopeHead<kHeadDim> head(p, min(index, heads - 1), lane);
    for (int row = first + vector / kHeads; row < first + kRows; row += kAtOnce / kHeads) {
      const int token = first_token + row;
      const auto at = head.place(min(token, p.num_rows - 1));
      head.store(at, load_shared_16(place(row, chunk)), load_shared_16(place(row, chunk + kLanes)),
                 token < p.num_rows && index < heads);
    }
  }

  __device__ void activate_all(const Epilogue& p, int first_token, int first_row) const {
    constexpr int kPairs = kColumns / 16;  // of a chunk of gate and its chunk of up
    bf16* out = static_cast<bf16*>(p.out) + first_token * p.out_stride + first_row / 2;
#pragma unroll 2
    for (int i = threadIdx.x % 32; i < 64 * kPairs; i += 32) {
      const int row = i / kPairs, pair = i % kPairs;
      const uint4 gate = load_shared_16(place(row, 2 * pair)), up = load_shared_16(place(row, 2 * pair + 1));
      const uint4 words{gated_words<true>(gate.x, up.x, p.activation), gated_words<true>(gate.y, up.y, p.activation),
                        gated_words<true>(gate.z, up.z, p.activation), gated_words<true>(gate.w, up.w, p.activation)};
      if (first_token + row < p.rows && first_row / 2 + pair * 8 < p.out_features / 2)
        *reinterpret_cast<uint4*>(out + row * p.out_stride + pair * 8) = words;
    }
  }

  __device__ void store_all(const Epilogue& p, int first_token, int first_row) const {
    constexpr int kChunks = kColumns / 8, kAtOnce = 4;
    bf16* out = static_cast<bf16*>(p.out) + first_token * p.out_stride + first_row;
    const bf16* residual = p.residual + first_token * p.residual_stride + first_row;
    for (int i = threadIdx.x % 32; i < 64 * kChunks; i += 32 * kAtOnce) {
      uint4 words[kAtOnce];
      const auto inside = [&](int k) {
        const int row = (i + 32 * k) / kChunks, chunk = (i + 32 * k) % kChunks;
        return first_token + row < p.rows && first_row + chunk * 8 < p.out_features;
      };
      if (kF32 && p.residual != nullptr)
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k)
          if (inside(k))
            words[k] = load_16(residual + (i + 32 * k) / kChunks * p.residual_stride + (i + 32 * k) % kChunks * 8);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int row = (i + 32 * k) / kChunks, chunk = (i + 32 * k) % kChunks;
        if (!inside(k)) continue;
        if constexpr (kF32) {
          const uint4 low = load_shared_16(place(row, chunk)), high = load_shared_16(place(row, chunk) + 16);
          const auto rounded = [&](uint32_t word, uint32_t a, uint32_t b) {
            const float x = __uint_as_float(a), y = __uint_as_float(b);
            return p.residual == nullptr ? pack_bf16(x, y)
                                         : pack_bf16(__fadd_rn(x, low_bf16(word)), __fadd_rn(y, high_bf16(word)));
          };
          words[k] = {rounded(words[k].x, low.x, low.y), rounded(words[k].y, low.z, low.w),
                      rounded(words[k].z, high.x, high.y), rounded(words[k].w, high.z, high.w)};
        } else {
          words[k] = load_shared_16(place(row, chunk));
        }
        *reinterpret_cast<uint4*>(out + row * p.out_stride + chunk * 8) = words[k];
      }
    }
  }
};

#endif

}  // namespace rtp_llm::cuda::tiled
