// linear_wgmma: y = x W^T for many rows. Tokens are the m64 operand of wgmma, rows of W the n operand, both from shared
// memory, the weights in the layout that the streaming kernel reads too.
//
// A CTA takes tiles of kTokens x kRows (of W), as long as there are any: a consumer warpgroup for each 64 tokens, and
// two lanes that keep a ring of K blocks full, one with weights, one with x. Weights are requested before the wait for
// the preceding kernel. CTAs may work in clusters, in one of two ways:
//   kShare = 2: the token tiles are neighbours, the weights the same: each CTA brings half of them for both.
//   kSplit = 2: the tile is the same, each CTA sums half of K's leaves; the sums meet in shared memory. (Clusters of 4
//   CTAs with such rings don't all find a place at once.)
// A CTA sums its leaves one after the other; a subtree's sum waits for its sibling in registers.
//
// Where a CTA takes several tiles, a tile's sums are finished beside the products of the next (linear_staging.cuh).
// With kRoped, norm and rotation of heads are part of that, and the warps of the last tile finish their rows in its
// way.
#pragma once

#include <algorithm>

#include "device/cuda/cluster.cuh"
#include "device/cuda/launch.h"
#include "device/cuda/linear.h"
#include "device/cuda/linear_epilogue.cuh"
#include "device/cuda/linear_staging.cuh"
#include "device/cuda/quad.cuh"
#include "device/cuda/tensor_map.h"
#include "device/cuda/wgmma.cuh"

namespace rtp_llm::cuda::tiled {

constexpr int kHeaderBytes = 1024;
constexpr int kRingBytes = 208 * 1024, kStagedRingBytes = 226 * 1024;
constexpr int kBand = 8;  // clusters of token tiles that a band of tiles is wide: x of a band stays in L2

struct WgmmaParameters {
  CUtensorMap x;
  CUtensorMap shared_weights;  // kShare: halves of a tile's rows, as boxes
  const uint8_t* weights;
  Epilogue epilogue;
  RopeStoreProblem rope;            // kRoped
  int first_block[kMaxLeaves + 1];  // of each leaf, and the end
  int blocks, groups, leaves;       // groups: of 8 rows
  int token_tiles, row_tiles;       // token_tiles: of a cluster
  uint32_t box_bytes;               // of x in a stage
};

// One kernel: its tile, how its CTAs work together, and what follows from that.
template <int kTokensOf, int kRowsOf, int kShareOf, int kSplitOf, int kLeavesOf, bool kStagedOf = false>
struct TileConfig {
  static constexpr int kTokens = kTokensOf, kRows = kRowsOf, kShare = kShareOf, kSplit = kSplitOf;
  static constexpr int kLeaves = kLeavesOf;  // summed by a CTA, one after the other
  static constexpr int kCluster = kShare * kSplit;
  static constexpr int kConsumers = kTokens / 64;  // warpgroups
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kTokenBytes = kTokens * 128, kWeightBytes = kRows * 128;  // of a stage
  static constexpr int kSlotBytes = kTokenBytes + kWeightBytes;
  static constexpr bool kStaged = kStagedOf, kStagedF32 = kLeaves > 1;
  // Behind the ring: sums of leaves, or sums that wait.
  static constexpr int kExchangeBytes = kSplit > 1 ? kTokens * kRows * 4
                                        : kStaged  ? kTokens * kRows * (kStagedF32 ? 4 : 2)
                                                   : 0;
  static constexpr int kStages = std::min(8, ((kStaged ? kStagedRingBytes : kRingBytes) - kExchangeBytes) / kSlotBytes);
  static constexpr int kSharedBytes = kHeaderBytes + kStages * kSlotBytes + kExchangeBytes;
  static constexpr int kSums = kRows / 2;       // a thread
  static_assert(kLeaves == 1 || kRows <= 128);  // registers for the sums that wait
  // Threads that a CTA's registers are counted for: more than it has, where its sums need few, so that the CTA of a
  // norm or of attention finds room beside it.
  static constexpr bool kIsSmall = kRows <= 64 && kLeaves == 1;
  static constexpr int kBoundThreads = kIsSmall ? 2 * kThreads : kThreads;
  static_assert(kShare == 1 || kSplit == 1);
  static_assert(!kStaged || kSplit == 1);
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct Tile {
  int token, row;  // first of each
};

template <class Config>
struct Pipeline {
  static constexpr int kStages = Config::kStages;

  const WgmmaParameters& p;
  uint8_t* shared;
  uint64_t *full, *empty;
  int rank, cluster, num_clusters, num_tiles;
  int stage = 0;
  uint32_t parity = 0;

  __device__ Pipeline(const WgmmaParameters& p, uint8_t* shared)
      : p(p),
        shared(shared),
        full(reinterpret_cast<uint64_t*>(shared)),
        empty(full + kStages),
        rank(Config::kCluster == 1 ? 0 : cluster_rank()),
        cluster(blockIdx.x / Config::kCluster),
        num_clusters(gridDim.x / Config::kCluster),
        num_tiles(p.token_tiles * p.row_tiles) {}

  __device__ void start_barriers() {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full + i, 2);  // the two producers
      barrier_init(empty + i, Config::kConsumers * Config::kShare);
    }
    if constexpr (Config::kStaged)
      for (int group = 0; group < Config::kConsumers; ++group) {
        barrier_init(staged_full(group), 4);
        barrier_init(staged_empty(group), 1);
      }
    barrier_init_fence();
  }
  __device__ uint64_t* staged_full(int group) const { return empty + kStages + 2 * group; }
  __device__ uint64_t* staged_empty(int group) const { return staged_full(group) + 1; }
  template <LinearOutput kOutput>
  __device__ Staging<kOutput, Config::kRows, Config::kStagedF32> staging(int group) const {
    using Sums = Staging<kOutput, Config::kRows, Config::kStagedF32>;
    return {slot(kStages) + group * Sums::kBytes, staged_full(group), staged_empty(group)};
  }
  // Not a CTA's last tile: nothing is multiplied beside it.
  template <LinearOutput kOutput>
  __device__ bool is_staged(int number) const {
    return number + num_clusters < num_tiles &&
           (kOutput != LinearOutput::kGated || p.epilogue.activation == Activation::kSilu);
  }

  __device__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  __device__ uint32_t slot(int stage) const {
    return shared_address(shared) + kHeaderBytes + stage * Config::kSlotBytes;
  }

  // Tiles in bands of kBand token tiles, the tokens of a band first.
  __device__ Tile tile(int number) const {
    const int band = number / (kBand * p.row_tiles), width = min(kBand, p.token_tiles - band * kBand);
    const int place = number - band * kBand * p.row_tiles;
    const int token_tile = (band * kBand + place % width) * Config::kShare + (Config::kShare > 1 ? rank : 0);
    return {token_tile * Config::kTokens, place / width * Config::kRows};
  }
  // First block of one of this CTA's leaves; kLeaves: the end.
  __device__ int begin(int leaf) const {
    return p.first_block[(Config::kSplit > 1 ? rank : 0) * Config::kLeaves + leaf];
  }

  // One thread. request(tile, block) for all of the CTA's blocks, each once its slot is empty.
  template <class Request>
  __device__ void produce(Request&& request) {
    int issued = 0;
    for (int number = cluster; number < num_tiles; number += num_clusters) {
      const Tile at = tile(number);
      for (int block = begin(0), end = begin(Config::kLeaves); block < end; ++block, ++issued) {
        if (issued >= kStages) barrier_wait(empty + stage, parity ^ 1);
        request(at, block);
        advance();
      }
    }
    if constexpr (Config::kShare > 1) {  // nobody leaves while the other still tells it of empty slots
      if (issued < kStages) stage = 0, parity = 1;
      for (int i = min(issued, kStages); i > 0; --i, advance()) barrier_wait(empty + stage, parity ^ 1);
    }
  }

  __device__ void produce_weights() {
    produce([&](const Tile& at, int block) {
      const uint32_t to = slot(stage) + Config::kTokenBytes;
      if constexpr (Config::kShare > 1) {
        constexpr int kHalf = Config::kRows / 2;
        barrier_expect(full + stage, Config::kWeightBytes);
        copy_box_to_cluster(to + rank * kHalf * 128, &p.shared_weights, 0, block * p.groups * 8 + at.row + rank * kHalf,
                            full + stage, 3);
      } else {
        const int bytes = min(Config::kRows / 8, p.groups - at.row / 8) * kGroupBytes;
        barrier_expect(full + stage, bytes);
        copy_bulk(to, p.weights + (static_cast<int64_t>(block) * p.groups + at.row / 8) * kGroupBytes, bytes,
                  full + stage);
      }
    });
  }

  __device__ void produce_x() {
    prefetch_map(&p.x);
    wait_for_predecessor();
    produce([&](const Tile& at, int block) {
      barrier_expect(full + stage, p.box_bytes);
      copy_box(slot(stage), &p.x, block * kBlockFeatures, at.token, full + stage);
    });
  }

  // A slot is read: told to every CTA that writes into it. One thread of a warpgroup.
  __device__ void release(int stage) const {
    const uint32_t barrier = shared_address(empty + stage);
    if constexpr (Config::kShare == 1)
      barrier_arrive(barrier);
    else
      for (int cta = 0; cta < Config::kShare; ++cta) barrier_arrive_in_cluster(address_in_cta(barrier, cta));
  }

  // sum = the products of blocks [begin, end). REQUIRES: begin < end.
  __device__ void multiply(float (&sum)[Config::kSums], int begin, int end, int group, bool speaks) {
    int before = 0;
    for (int block = begin; block < end; ++block) {
      barrier_wait(full + stage, parity);
      const uint64_t tokens = swizzled_operand(slot(stage) + group * 64 * 128);
      const uint64_t weights = plain_operand(slot(stage) + Config::kTokenBytes, 128, kGroupBytes);
      keep_in_place(sum);
      warpgroup_fence();
#pragma unroll
      for (int step = 0; step < 4; ++step)
        warpgroup_multiply<Config::kRows>(sum, tokens + step * (32 >> 4), weights + step * (256 >> 4),
                                          block > begin || step > 0);
      warpgroup_commit();
      keep_in_place(sum);
      warpgroup_wait<1>();
      if (speaks && block > begin) release(before);
      before = stage;
      advance();
    }
    warpgroup_wait<0>();
    keep_in_place(sum);
    if (speaks) release(before);
  }

  // Leaf after leaf: a finished subtree joins its left sibling, or waits for the right one.
  __device__ void multiply_leaves(float (&sum)[Config::kSums], int group, bool speaks) {
    const auto leaf = [&](float (&to)[Config::kSums], int i) { multiply(to, begin(i), begin(i + 1), group, speaks); };
    if constexpr (Config::kLeaves == 1) {
      leaf(sum, 0);
    } else {
      float left[Config::kSums];
      leaf(left, 0);
      leaf(sum, 1);
      add_to(sum, left);
      if constexpr (Config::kLeaves == 4) {
        float third[Config::kSums];
        copy_to(left, sum);
        leaf(third, 2);
        leaf(sum, 3);
        add_to(sum, third);
        add_to(sum, left);
      }
    }
  }
  __device__ static void add_to(float (&sum)[Config::kSums], const float (&left)[Config::kSums]) {
#pragma unroll
    for (int i = 0; i < Config::kSums; ++i) sum[i] = __fadd_rn(left[i], sum[i]);
  }
  __device__ static void copy_to(float (&to)[Config::kSums], const float (&from)[Config::kSums]) {
#pragma unroll
    for (int i = 0; i < Config::kSums; ++i) to[i] = from[i];
  }

  // The leaves of the cluster's CTAs meet behind the rings: each CTA takes a part of the tile's columns, in `part`.
  // [owner of the part][leaf][4 sums][consumer thread].
  static constexpr int kPart = Config::kSums / Config::kSplit;
  __device__ void sum_leaves(const float (&sum)[Config::kSums], float (&part)[kPart]) const {
    constexpr int kWords = kPart / 4, kConsumerThreads = Config::kConsumers * 128;
    const uint32_t place = slot(kStages) + (threadIdx.x - 128) * sizeof(float4);
    const auto offset = [&](int leaf, int word) {
      return static_cast<uint32_t>((leaf * kWords + word) * kConsumerThreads * sizeof(float4));
    };
#pragma unroll
    for (int owner = 0; owner < Config::kSplit; ++owner) {
      const uint32_t to = address_in_cta(place, owner);
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
        const int at = owner * kPart + word * 4;
        store_to_cluster(to + offset(rank, word), {sum[at], sum[at + 1], sum[at + 2], sum[at + 3]});
      }
    }
    cluster_barrier();
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
      const float4 total =
          tree_sum(Config::kSplit, [&](int leaf) { return load_from_cluster(place + offset(leaf, word)); });
      part[word * 4] = total.x, part[word * 4 + 1] = total.y, part[word * 4 + 2] = total.z,
                  part[word * 4 + 3] = total.w;
    }
  }
};

// What a lane has of 16 tokens x kColumns rows of W: sum[4j + e] is of token lane / 4 (+ 8 for e >= 2) and column
// 8j + lane % 4 * 2 + e % 2. Each step is one pass over the sums, taken or not as a whole: this code runs once a tile,
// and what it doesn't need should not be fetched.
template <int kColumns>
__device__ __forceinline__ void add_bias(const Epilogue& p, int first_column, float (&sum)[kColumns / 2]) {
  if (p.bias == nullptr) return;
#pragma unroll
  for (int block = 0; block < kColumns / 8; ++block) {
    const int column = first_column + block * 8 + threadIdx.x % 4 * 2;
    if (column >= p.out_features) continue;
    const float2 bias = *reinterpret_cast<const float2*>(p.bias + column);
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[block * 4 + e] = __fadd_rn(sum[block * 4 + e], e % 2 == 0 ? bias.x : bias.y);
  }
}

// The residual of one half of the tokens.
template <int kColumns>
struct Residual {
  static constexpr int kQuads = kColumns / 32;
  uint32_t words[kQuads][4];

  __device__ __forceinline__ void load(const Epilogue& p, int first_token, int first_column, int half) {
    const int token = first_token + threadIdx.x % 32 / 4 + half * 8;
    const bf16* row = p.residual + token * p.residual_stride + first_column;
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad)
      load_quad(row + quad * 32, token < p.rows && first_column + quad * 32 + threadIdx.x % 4 * 8 < p.out_features,
                words[quad]);
  }
  __device__ __forceinline__ void add_to(float (&sum)[kColumns / 2], int half) {
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      transpose_quad(words[quad]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float* at = sum + (quad * 4 + i) * 4 + half * 2;
        at[0] = __fadd_rn(at[0], low_bf16(words[quad][i]));
        at[1] = __fadd_rn(at[1], high_bf16(words[quad][i]));
      }
    }
  }
};

template <int kColumns>
__device__ __forceinline__ void add_residual(const Epilogue& p, int first_token, int first_column,
                                             float (&sum)[kColumns / 2]) {
  if (p.residual == nullptr) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Residual<kColumns> residual;
    residual.load(p, first_token, first_column, half);
    residual.add_to(sum, half);
  }
}

template <int kColumns>
__device__ __forceinline__ void store_f32(const Epilogue& p, int first_token, int first_column,
                                          const float (&sum)[kColumns / 2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = first_token + threadIdx.x % 32 / 4 + half * 8;
    float* row = static_cast<float*>(p.out) + token * p.out_stride;
#pragma unroll
    for (int block = 0; block < kColumns / 8; ++block) {
      const int column = first_column + block * 8 + threadIdx.x % 4 * 2;
      if (token < p.rows && column < p.out_features)
        *reinterpret_cast<float2*>(row + column) = {sum[block * 4 + half * 2], sum[block * 4 + half * 2 + 1]};
    }
  }
}

// Pairs of columns as bf16; pair(i, half) gives those of block i and of one half of the tokens.
template <int kColumns, class Pair>
__device__ __forceinline__ void store_bf16(const Epilogue& p, int first_token, int first_column, int num_columns,
                                           Pair&& pair) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = first_token + threadIdx.x % 32 / 4 + half * 8;
    bf16* row = static_cast<bf16*>(p.out) + token * p.out_stride + first_column;
#pragma unroll
    for (int quad = 0; quad < kColumns / 32; ++quad) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = pair(quad * 4 + i, half);
      store_quad(row + quad * 32, token < p.rows && first_column + quad * 32 + threadIdx.x % 4 * 8 < num_columns,
                 words);
    }
#pragma unroll
    for (int block = kColumns / 32 * 4; block < kColumns / 8; ++block) {  // what makes no quad
      const int column = block * 8 + threadIdx.x % 4 * 2;
      if (token < p.rows && first_column + column < num_columns)
        *reinterpret_cast<uint32_t*>(row + column) = pair(block, half);
    }
  }
}

template <bool kIsSilu, int kColumns>
__device__ __forceinline__ void store_gated(const Epilogue& p, int first_token, int first_column,
                                            const float (&sum)[kColumns / 2]) {
  store_bf16<kColumns / 2>(p, first_token, first_column / 2, p.out_features / 2, [&](int i, int half) {
    const float *gate = sum + i * 8 + half * 2, *up = gate + 4;
    return gated_pair<kIsSilu>(gate[0], gate[1], up[0], up[1], p.activation);
  });
}

// REQUIRES: not gated.
template <LinearOutput kOutput, int kColumns>
__device__ __forceinline__ void store_rounded(const Epilogue& p, float (&sum)[kColumns / 2], int first_token,
                                              int first_column) {
  if constexpr (kOutput == LinearOutput::kF32)
    store_f32<kColumns>(p, first_token, first_column, sum);
  else
    store_bf16<kColumns>(p, first_token, first_column, p.out_features,
                         [&](int i, int half) { return pack_bf16(sum[i * 4 + half * 2], sum[i * 4 + half * 2 + 1]); });
}

// REQUIRES: out_features a multiple of 8 (16 if gated).
template <LinearOutput kOutput, int kColumns>
__device__ __forceinline__ void store_sums(const Epilogue& p, float (&sum)[kColumns / 2], int first_token,
                                           int first_column) {
  add_bias<kColumns>(p, first_column, sum);
  if constexpr (kOutput == LinearOutput::kGated) {
    p.activation == Activation::kSilu ? store_gated<true, kColumns>(p, first_token, first_column, sum)
                                      : store_gated<false, kColumns>(p, first_token, first_column, sum);
    return;
  }
  add_residual<kColumns>(p, first_token, first_column, sum);
  store_rounded<kOutput, kColumns>(p, sum, first_token, first_column);
}

// Of a thread beside the producers, and of a consumer; with two consumer warpgroups together at most the 3 x 168 that
// the kernel is launched with, or it waits for ever.
template <LinearOutput kOutput>
constexpr int kStagedRegisters[2] = {72, 216};
template <>
constexpr int kStagedRegisters<LinearOutput::kRoped>[2] = {88, 208};

#endif

template <class Config, LinearOutput kOutput>
__global__ void __launch_bounds__(Config::kBoundThreads, 1) wgmma_kernel(const __grid_constant__ WgmmaParameters p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) uint8_t shared[];
  Pipeline<Config> pipeline(p, shared);
  if (threadIdx.x == 0) pipeline.start_barriers();
  if constexpr (Config::kCluster > 1)
    cluster_barrier_relaxed();
  else
    __syncthreads();
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    if constexpr (Config::kStaged)
      give_registers<kStagedRegisters<kOutput>[0]>();
    else if constexpr (Config::kConsumers == 2 && !Config::kIsSmall)
      give_registers<40>();
    let_successor_start();
    if (threadIdx.x == 0) pipeline.produce_weights();
    if (threadIdx.x == 32) pipeline.produce_x();
    if constexpr (Config::kStaged)
      if (threadIdx.x >= 64) {
        wait_for_predecessor();
        const int group = threadIdx.x / 32 - 2;
        uint32_t parity = 0;
        for (int number = pipeline.cluster; pipeline.template is_staged<kOutput>(number);
             number += pipeline.num_clusters, parity ^= 1) {
          const Tile at = pipeline.tile(number);
          pipeline.template staging<kOutput>(group).finish(p.epilogue, p.rope, at.token + group * 64, at.row, parity);
        }
      }
  } else {
    if constexpr (Config::kStaged)
      take_registers<kStagedRegisters<kOutput>[1]>();
    else if constexpr (Config::kConsumers == 2 && !Config::kIsSmall)
      take_registers<232>();
    wait_for_predecessor();
    const int group = warpgroup - 1, warp = threadIdx.x / 32 % 4;
    const bool speaks = threadIdx.x % 128 == 0;
    uint32_t parity = 0;  // of the staging
    for (int number = pipeline.cluster; number < pipeline.num_tiles; number += pipeline.num_clusters, parity ^= 1) {
      const Tile at = pipeline.tile(number);
      const int first_token = at.token + group * 64 + warp * 16;
      float sum[Config::kSums];
      if constexpr (Config::kSplit > 1) {
        constexpr int kColumns = Config::kRows / Config::kSplit;
        const int first_column = at.row + pipeline.rank * kColumns;
        Residual<kColumns> residual[2];  // requested before the products: the CTA has no other tile
        if (p.epilogue.residual != nullptr)
          for (int half = 0; half < 2; ++half) residual[half].load(p.epilogue, first_token, first_column, half);
        pipeline.multiply_leaves(sum, group, speaks);
        float part[Pipeline<Config>::kPart];
        pipeline.sum_leaves(sum, part);
        add_bias<kColumns>(p.epilogue, first_column, part);
        if (p.epilogue.residual != nullptr)
          for (int half = 0; half < 2; ++half) residual[half].add_to(part, half);
        store_rounded<kOutput, kColumns>(p.epilogue, part, first_token, first_column);
      } else {
        pipeline.multiply_leaves(sum, group, speaks);
        if constexpr (kOutput == LinearOutput::kRoped) {
          const auto staging = pipeline.template staging<kOutput>(group);
          add_bias<Config::kRows>(p.epilogue, at.row, sum);
          staging.lay(sum, parity);
          if (pipeline.template is_staged<kOutput>(number))
            staging.say_full();
          else
            staging.template rope_rows<16>(p.rope, at.token + group * 64, at.row, warp * 16);
          continue;
        }
        if constexpr (Config::kStaged)
          if (pipeline.template is_staged<kOutput>(number)) {
            add_bias<Config::kRows>(p.epilogue, at.row, sum);
            if constexpr (kOutput == LinearOutput::kBf16 && !Config::kStagedF32)
              add_residual<Config::kRows>(p.epilogue, first_token, at.row, sum);
            pipeline.template staging<kOutput>(group).put(sum, parity);
            continue;
          }
        store_sums<kOutput, Config::kRows>(p.epilogue, sum, first_token, at.row);
      }
    }
  }
#endif
}

template <class Config, LinearOutput kOutput>
void start_kernel(cudaStream_t stream, const LinearProblem& problem, int grid) {
  const auto kernel = wgmma_kernel<Config, kOutput>;
  static OncePerGpu once;
  if (once.first()) prepare_kernel(kernel, Config::kSharedBytes, "linear_wgmma");
  const int groups = problem.tiles() * 2;
  const int token_tiles = (problem.rows + Config::kTokens - 1) / Config::kTokens;
  // Of a lone tile only the rows there are: a box that reaches beyond its tensor is slow. What lies in the rest of the
  // slot goes to sums that nobody stores.
  const int box_rows = std::min(Config::kTokens, problem.rows);
  WgmmaParameters p{.x = make_tensor_map({.x = problem.x,
                                          .rows = problem.rows,
                                          .features = problem.in_features,
                                          .stride = problem.x_stride,
                                          .box_rows = box_rows,
                                          .box_features = kBlockFeatures}),
                    .shared_weights = {},
                    .weights = static_cast<const uint8_t*>(problem.weights),
                    .epilogue = epilogue_of(problem),
                    .rope = problem.rope,
                    .first_block = {},
                    .blocks = problem.blocks(),
                    .groups = groups,
                    .leaves = problem.leaves,
                    .token_tiles = (token_tiles + Config::kShare - 1) / Config::kShare,
                    .row_tiles = (groups * 8 + Config::kRows - 1) / Config::kRows,
                    .box_bytes = static_cast<uint32_t>(box_rows) * 128};
  if constexpr (Config::kShare > 1)  // pieces of 128 bytes as rows
    p.shared_weights = make_tensor_map({.x = static_cast<const bf16*>(problem.weights),
                                        .rows = int64_t{problem.blocks()} * groups * 8,
                                        .features = 64,
                                        .stride = 64,
                                        .box_rows = Config::kRows / 2,
                                        .box_features = 64,
                                        .swizzle = false});
  for (int leaf = 0; leaf <= problem.leaves; ++leaf)
    p.first_block[leaf] = first_block(leaf, problem.leaves, problem.blocks());
  launch(stream,
         {.grid = dim3(grid),
          .block = dim3(Config::kThreads),
          .shared_bytes = Config::kSharedBytes,
          .cluster = Config::kCluster},
         "linear_wgmma", kernel, p);
}

template <class Config>
bool matches(const LinearProblem& problem, const WgmmaShape& shape) {
  return shape.tokens == Config::kTokens && shape.tile_rows == Config::kRows && shape.share == Config::kShare &&
         shape.split == Config::kSplit && problem.leaves == Config::kLeaves * Config::kSplit;
}

// False if no kernel has this shape.
template <LinearOutput kOutput, class... Configs>
bool start_matching(cudaStream_t stream, const LinearProblem& problem, const WgmmaShape& shape) {
  return ((matches<Configs>(problem, shape) && (start_kernel<Configs, kOutput>(stream, problem, shape.grid), true)) ||
          ...);
}

// Compiled in a file for each output.
bool start_bf16(cudaStream_t stream, const LinearProblem& problem, const WgmmaShape& shape);
bool start_f32(cudaStream_t stream, const LinearProblem& problem, const WgmmaShape& shape);
bool start_gated(cudaStream_t stream, const LinearProblem& problem, const WgmmaShape& shape);
bool start_roped(cudaStream_t stream, const LinearProblem& problem, const WgmmaShape& shape);

}  // namespace rtp_llm::cuda::tiled
