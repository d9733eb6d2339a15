// linear_stream: y = x W^T for few rows, at the rate at which memory gives the weights.
//
// A CTA multiplies `tiles` tiles of 16 rows of W, one warp a tile and leaf, over all of the leaf's K. Weights are the
// m16 operand of mma.m16n8k16, tokens the n8. One lane streams weights by bulk copies into a ring of 200 KiB (so one
// CTA an SM: the next kernel's CTA starts where one has left, fills its ring, then waits), another lane brings x behind
// them. Weights are requested before the wait for the preceding kernel. Leaves of the tree lie in warps of a CTA or in
// CTAs of a cluster; sums are exchanged through shared memory and added in the tree's order.
//
// Slot of the ring: weights [leaf][block][tile][2 KiB], then x [leaf][block][row][128 B] (swizzled unless one row).
#pragma once

#include "device/cuda/cluster.cuh"
#include "device/cuda/launch.h"
#include "device/cuda/linear.h"
#include "device/cuda/linear_epilogue.cuh"
#include "device/cuda/tensor_map.h"

namespace rtp_llm::cuda::streaming {

constexpr int kMaxStages = 24;
// Of a CTA, with its two producers. Stages of 4 blocks are for few warps, each with more in registers.
constexpr int max_warps(int blocks_in_stage) { return blocks_in_stage == 4 ? 6 : 16; }
constexpr int kHeaderBytes = 1024;  // barriers and a piece of zeros
constexpr int kZerosAt = 3 * kMaxStages * 8;
constexpr int kRingBytes = 200 * 1024;

struct StreamParameters {
  CUtensorMap x;
  const uint8_t* weights;
  Epilogue epilogue;
  StreamShape shape;
  int first_block[kMaxLeaves + 1];         // of each leaf, and the end
  int total_tiles, groups, leaves, steps;  // groups: of shape.tiles tiles; steps: stages of a group
  int slot_bytes, x_at;                    // x_at: of x within a slot
  uint32_t zero;                           // 0, and the compiler doesn't know
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// A place in the ring and the parity of its phase.
struct Place {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void advance(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// The ring of one CTA and its place in the problem.
template <int kTokens, int kBlocks>
struct Stream {
  static constexpr int kBlockBytes = kTokens * 128;  // of x

  const StreamParameters& p;
  uint8_t* shared;
  uint64_t *full, *x_full, *empty;
  int cluster_index, rank, num_clusters;

  __device__ Stream(const StreamParameters& parameters, uint8_t* shared)
      : p(parameters),
        shared(shared),
        full(reinterpret_cast<uint64_t*>(shared)),
        x_full(full + kMaxStages),
        empty(x_full + kMaxStages),
        cluster_index(blockIdx.x / p.shape.cluster),
        rank(blockIdx.x % p.shape.cluster),
        num_clusters(gridDim.x / p.shape.cluster) {}

  __device__ uint8_t* slot(int stage) const { return shared + kHeaderBytes + stage * p.slot_bytes; }
  __device__ int tiles_of(int group) const { return min(p.shape.tiles, p.total_tiles - group * p.shape.tiles); }
  // Leaves are counted over the cluster.
  __device__ int begin(int leaf_in_cta) const { return p.first_block[rank * p.shape.leaves_in_cta + leaf_in_cta]; }
  __device__ int end(int leaf_in_cta) const { return p.first_block[rank * p.shape.leaves_in_cta + leaf_in_cta + 1]; }

  __device__ void start_barriers(int consumers) {
    for (int stage = 0; stage < p.shape.stages; ++stage) {
      barrier_init(full + stage, 1);
      barrier_init(x_full + stage, 1);
      barrier_init(empty + stage, consumers);
    }
    for (int i = 0; i < 4; ++i) reinterpret_cast<uint32_t*>(shared + kZerosAt)[i] = 0;
    barrier_init_fence();
  }

  // One warp; a lane requests one block of one leaf of each stage.
  __device__ void produce_weights() const {
    const uint64_t policy = evict_first_policy();
    const int lane = threadIdx.x % 32, leaf = lane / kBlocks;
    const bool requests = leaf < p.shape.leaves_in_cta;
    const int first = requests ? begin(leaf) + lane % kBlocks : 0, last = requests ? end(leaf) : 0;
    const uint32_t offset = lane * p.shape.tiles * kTileBytes;
    const int64_t step_bytes = int64_t{kBlocks} * p.total_tiles * kTileBytes;
    Place place, landed;
    int issued = 0;
    for (int group = cluster_index; group < p.groups; group += num_clusters) {
      const uint8_t* from = p.weights + (int64_t{first} * p.total_tiles + group * p.shape.tiles) * kTileBytes;
      const uint32_t bytes = tiles_of(group) * kTileBytes;
      for (int step = 0, block = first; step < p.steps; ++step, block += kBlocks, from += step_bytes, ++issued) {
        if (issued >= p.shape.stages) {
          if (issued == p.shape.stages) let_successor_start();  // the ring is full
          barrier_wait(empty + place.stage, place.parity ^ 1);
        }
        if (issued >= p.shape.in_flight) {
          barrier_wait(full + landed.stage, landed.parity);
          landed.advance(p.shape.stages);
        }
        const bool valid = block < last;
        const uint32_t pieces = __popc(__ballot_sync(~0u, valid));
        if (lane == 0) barrier_expect(full + place.stage, pieces * bytes);
        __syncwarp();
        if (valid) copy_bulk(shared_address(slot(place.stage)) + offset, from, bytes, full + place.stage, policy);
        place.advance(p.shape.stages);
      }
    }
    if (issued <= p.shape.stages) let_successor_start();
  }

  // One warp; a lane brings one box of each stage: a block of a leaf, or with one row all of a leaf's blocks.
  __device__ void produce_x() const {
    constexpr int kBoxes = kTokens == 1 ? 1 : kBlocks;
    const int lane = threadIdx.x % 32, leaf = lane / kBoxes;
    const bool requests = leaf < p.shape.leaves_in_cta;
    const int first = requests ? (begin(leaf) + lane % kBoxes) * kBlockFeatures : 0;
    const uint32_t offset = p.x_at + lane * (kBlocks / kBoxes) * kBlockBytes;
    const uint32_t bytes = p.shape.leaves_in_cta * kBlocks * p.epilogue.rows * 128;
    if (lane == 0) prefetch_map(&p.x);
    wait_for_predecessor();
    Place place;
    int issued = 0;
    for (int group = cluster_index; group < p.groups; group += num_clusters)
      for (int step = 0, feature = first; step < p.steps; ++step, feature += kBlocks * kBlockFeatures, ++issued) {
        if (issued >= p.shape.stages) barrier_wait(empty + place.stage, place.parity ^ 1);
        if (lane == 0) barrier_expect(x_full + place.stage, bytes);
        __syncwarp();
        if (requests) copy_box(shared_address(slot(place.stage)) + offset, &p.x, feature, 0, x_full + place.stage);
        place.advance(p.shape.stages);
      }
  }
};

// One block of a tile: sum += W x^T. Returns a word that depends on every register loaded from the slot.
template <int kTokens, int kTokenTiles>
__device__ __forceinline__ uint32_t multiply_block(float (&sum)[kTokenTiles][4], uint32_t weights, uint32_t x,
                                                   uint32_t zeros) {
  const int lane = threadIdx.x % 32, piece = lane / 8, row = lane % 8;
  // ldmatrix: lanes 8q..8q+7 give the rows of matrix q. Weights: q = rows 0-7, 8-15 of k 0-7, then of k 8-15.
  const uint32_t weights_row = weights + piece % 2 * kGroupBytes + piece / 2 * 128 + row * 16;
  uint32_t seen = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // of 32 features: two steps of 16, whose B operands one ldmatrix brings
    uint32_t a[2][4];
    load_matrices(a[0], weights_row + half * 512);
    load_matrices(a[1], weights_row + half * 512 + 256);
    seen ^= a[0][0] ^ a[1][0];
#pragma unroll
    for (int tile = 0; tile < kTokenTiles; ++tile) {
      const int chunk = half * 4 + piece;
      uint32_t at;
      if constexpr (kTokens == 1)
        at = row == 0 ? x + chunk * 16 : zeros;
      else
        at = x + (tile * 8 + row) * 128 + ((chunk ^ row) << 4);
      uint32_t b[4];
      load_matrices(b, at);
      seen ^= b[0];
      multiply_add(sum[tile], a[0][0], a[0][1], a[0][2], a[0][3], b[0], b[1]);
      multiply_add(sum[tile], a[1][0], a[1][1], a[1][2], a[1][3], b[2], b[3]);
    }
  }
  return seen;
}

// Where lane's element e of token tile j lies in out: feature row of the tile, token.
__device__ __forceinline__ int row_of(int e) { return threadIdx.x % 32 / 4 + e / 2 * 8; }
__device__ __forceinline__ int token_of(int j, int e) { return j * 8 + threadIdx.x % 4 * 2 + e % 2; }

template <LinearOutput kOutput, int kTokenTiles>
__device__ __forceinline__ void store_tile(const Epilogue& p, int tile, const float (&sum)[kTokenTiles][4],
                                           const float (&residual)[kTokenTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int token = token_of(j, e), column = tile * kTileRows + row_of(e);
      if (token >= p.rows || column >= p.out_features) continue;
      const float value = finished(sum[j][e], p.bias, column, residual[j][e], p.residual != nullptr);
      if constexpr (kOutput == LinearOutput::kF32)
        static_cast<float*>(p.out)[token * p.out_stride + column] = value;
      else
        static_cast<bf16*>(p.out)[token * p.out_stride + column] = __float2bfloat16_rn(value);
    }
}

template <int kTokenTiles>
__device__ __forceinline__ void store_gated(const Epilogue& p, int tile, const float (&sum)[kTokenTiles][4]) {
  const int gate = tile * kTileRows + row_of(0), up = gate + 8;
  if (up >= p.out_features) return;
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
    const auto value = [&](int e) { return finished(sum[j][e], p.bias, e < 2 ? gate : up, 0, false); };
    const uint32_t pair = gated_pair(value(0), value(1), value(2), value(3), p.activation);
    bf16* column = static_cast<bf16*>(p.out) + tile * 8 + row_of(0);
    if (token_of(j, 0) < p.rows) column[token_of(j, 0) * p.out_stride] = low_half(pair);
    if (token_of(j, 1) < p.rows) column[token_of(j, 1) * p.out_stride] = high_half(pair);
  }
}

template <int kTokenTiles>
__device__ __forceinline__ void load_residual(const Epilogue& p, int tile, float (&residual)[kTokenTiles][4]) {
  if (p.residual == nullptr) return;
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int token = token_of(j, e), column = tile * kTileRows + row_of(e);
      if (token < p.rows && column < p.out_features)
        residual[j][e] = __bfloat162float(p.residual[token * p.residual_stride + column]);
    }
}

// The leaves' sums, exchanged through the ring, which is empty by now. Each warp leaves its sums there; true for the
// warp that finishes the tile, with the tree's sum in `sum`. REQUIRES: every consumer warp of the cluster calls it.
template <int kTokenTiles>
__device__ __forceinline__ bool sum_leaves(const StreamShape& shape, int leaves, int rank, int warp_tile, int warp_leaf,
                                           uint8_t* ring, float (&sum)[kTokenTiles][4]) {
  const int consumers = shape.tiles * shape.leaves_in_cta * 32;
  const auto offset = [&](int leaf_in_cta, int j) {
    return (((leaf_in_cta * shape.tiles + warp_tile) * kTokenTiles + j) * 32 + threadIdx.x % 32) * sizeof(float4);
  };
  asm volatile("bar.sync 1, %0;" ::"r"(consumers) : "memory");  // the ring is read to its end
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j)
    *reinterpret_cast<float4*>(ring + offset(warp_leaf, j)) = {sum[j][0], sum[j][1], sum[j][2], sum[j][3]};
  if (shape.cluster > 1)
    cluster_barrier();
  else
    asm volatile("bar.sync 1, %0;" ::"r"(consumers) : "memory");
  const bool finishes = warp_leaf == 0 && warp_tile % shape.cluster == rank;
  if (finishes) {
    const uint32_t at = shared_address(ring);
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      const float4 total = tree_sum(leaves, [&](int leaf) {
        const int owner = leaf / shape.leaves_in_cta, in_cta = leaf % shape.leaves_in_cta;
        return load_from_cluster(address_in_cta(at, owner) + offset(in_cta, j));
      });
      sum[j][0] = total.x, sum[j][1] = total.y, sum[j][2] = total.z, sum[j][3] = total.w;
    }
  }
  if (shape.cluster > 1) cluster_barrier_relaxed();  // nobody leaves while its sums are read
  return finishes;
}

template <int kTokens, int kBlocks, LinearOutput kOutput>
__device__ __forceinline__ void consume(const Stream<kTokens, kBlocks>& stream, int warp) {
  constexpr int kTokenTiles = (kTokens + 7) / 8;
  const StreamParameters& p = stream.p;
  const StreamShape& shape = p.shape;
  const int warp_tile = warp % shape.tiles, warp_leaf = warp / shape.tiles, lane = threadIdx.x % 32;
  const int blocks = stream.end(warp_leaf) - stream.begin(warp_leaf);
  const uint32_t zeros = shared_address(stream.shared + kZerosAt);
  wait_for_predecessor();
  Place place;
  for (int group = stream.cluster_index; group < p.groups; group += stream.num_clusters) {
    const int tile = group * shape.tiles + warp_tile;
    const bool used = tile < p.total_tiles, finishes = warp_leaf == 0 && warp_tile % shape.cluster == stream.rank;
    float sum[kTokenTiles][4] = {}, residual[kTokenTiles][4] = {};
    if (used && finishes) load_residual(p.epilogue, tile, residual);
    for (int step = 0; step < p.steps; ++step) {
      barrier_wait(stream.full + place.stage, place.parity);
      barrier_wait(stream.x_full + place.stage, place.parity);
      const uint32_t slot = shared_address(stream.slot(place.stage));
      const int valid = used ? min(kBlocks, blocks - step * kBlocks) : 0;
      uint32_t seen = 0;
      const auto multiply = [&](int block) {
        const int at = warp_leaf * kBlocks + block;
        seen ^= multiply_block<kTokens>(sum, slot + (at * shape.tiles + warp_tile) * kTileBytes,
                                        slot + p.x_at + at * stream.kBlockBytes, zeros);
      };
      if (valid == kBlocks) {
#pragma unroll(kTokens >= 32 ? 1 : kBlocks)
        for (int block = 0; block < kBlocks; ++block) multiply(block);
      } else {
#pragma unroll 1
        for (int block = 0; block < valid; ++block) multiply(block);
      }
      // An arrive can overtake loads from shared memory: it waits for their registers through its own address.
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_address(stream.empty + place.stage) + (seen & p.zero));
      place.advance(shape.stages);
    }
    bool stores = used;
    if (kOutput == LinearOutput::kBf16 && p.leaves > 1)
      stores = sum_leaves(shape, p.leaves, stream.rank, warp_tile, warp_leaf, stream.slot(0), sum) && used;
    if (!stores) continue;
    if constexpr (kOutput == LinearOutput::kGated)
      store_gated(p.epilogue, tile, sum);
    else
      store_tile<kOutput>(p.epilogue, tile, sum, residual);
  }
}

#endif

template <int kTokens, int kBlocks, LinearOutput kOutput>
__global__ void __launch_bounds__(max_warps(kBlocks) * 32, 1)
    stream_kernel(const __grid_constant__ StreamParameters p) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(1024) uint8_t shared[];
  Stream<kTokens, kBlocks> stream(p, shared);
  const int consumers = p.shape.tiles * p.shape.leaves_in_cta;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  if (threadIdx.x == consumers * 32) stream.start_barriers(consumers);
  __syncthreads();
  if (warp < consumers)
    consume<kTokens, kBlocks, kOutput>(stream, warp);
  else if (warp == consumers)
    stream.produce_weights();
  else
    stream.produce_x();
#endif
}

template <int kTokens, int kBlocks, LinearOutput kOutput>
void start_kernel(cudaStream_t stream, const StreamParameters& p) {
  const auto kernel = stream_kernel<kTokens, kBlocks, kOutput>;
  static OncePerGpu once;
  if (once.first()) prepare_kernel(kernel, kHeaderBytes + kRingBytes, "linear_stream");
  launch(stream,
         {.grid = dim3(p.shape.grid),
          .block = dim3((p.shape.tiles * p.shape.leaves_in_cta + 2) * 32),
          .shared_bytes = static_cast<size_t>(kHeaderBytes + p.shape.stages * p.slot_bytes),
          .cluster = p.shape.cluster},
         "linear_stream", kernel, p);
}

template <int kTokens, LinearOutput kOutput>
void start_tokens(cudaStream_t stream, const StreamParameters& p) {
  p.shape.blocks_in_stage == 1 ? start_kernel<kTokens, 1, kOutput>(stream, p)
                               : start_kernel<kTokens, 4, kOutput>(stream, p);
}

// tokens: 1, 8, 16 or 32. Compiled once for each output, in files of their own.
template <LinearOutput kOutput>
void start_stream(cudaStream_t stream, int tokens, const StreamParameters& p) {
  switch (tokens) {
    case 1: return start_tokens<1, kOutput>(stream, p);
    case 8: return start_tokens<8, kOutput>(stream, p);
    case 16: return start_tokens<16, kOutput>(stream, p);
    default: return start_tokens<32, kOutput>(stream, p);
  }
}

extern template void start_stream<LinearOutput::kBf16>(cudaStream_t, int, const StreamParameters&);
extern template void start_stream<LinearOutput::kF32>(cudaStream_t, int, const StreamParameters&);
extern template void start_stream<LinearOutput::kGated>(cudaStream_t, int, const StreamParameters&);

}  // namespace rtp_llm::cuda::streaming
