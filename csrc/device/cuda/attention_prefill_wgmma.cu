// Prefill attention by wgmma, for Hopper (sm_90a).
//
// A CTA stays and draws tiles of 128 rows of one query head. Its copying warp brings Q and the blocks of K and V, in a
// ring, by the copy engine; two warpgroups of 64 rows each keep scores, the block's output and the running output in
// registers.
//
//   shared memory   Q [2 warpgroups][64 rows], ring of blocks K0 V0 K1 V1 ... [128 positions]; halves of 64 dims each
//   a block         output of block j = p V(j) in parts of 32 positions: a part's products run while the next part's
//                   weights are computed; then scores of block j + 1 = Q K(j + 1), while the output is merged
#include "device/cuda/attention_fold.cuh"
#include "device/cuda/attention_shapes.h"
#include "device/cuda/attention_tiles.cuh"
#include "device/cuda/attention_wgmma.cuh"
#include "device/cuda/kv_map.h"
#include "device/cuda/launch.h"
#include "device/cuda/quad.cuh"
#include "device/cuda/tensor_map.h"

namespace rtp_llm::cuda {
namespace {

constexpr int kGroups = 2, kGroupRows = 64, kTile = kGroups * kGroupRows;
constexpr int kThreads = 128 * (kGroups + 1);        // warpgroup 0 copies
[[maybe_unused]] constexpr int kParts = 4;           // of a block's weights
[[maybe_unused]] constexpr int kHalfRowBytes = 128;  // 64 dims

template <int kHeadDim>
struct Layout {
  [[maybe_unused]] static constexpr int kHalves = kHeadDim / 64;
  static constexpr int kQueryBytes = kGroupRows * kHeadDim * 2;       // of a warpgroup
  static constexpr int kBlockBytes = kBlockPositions * kHeadDim * 2;  // of a ring slot
  static constexpr int kSlots = kHeadDim == 128 ? 6 : 12;
  static constexpr int kSharedBytes = kGroups * kQueryBytes + kSlots * kBlockBytes + 1024;
};

struct WgmmaParameters {
  CUtensorMap kv_boxes;
  CUtensorMap q_boxes;  // 64 rows of 64 dims
  TileList tiles;
  KvView kv;
  const int32_t* block_tables;
  int64_t block_table_stride;
  bf16* out;
  int64_t out_stride;
  int num_heads;
  int box;                  // positions
  uint32_t inverse_tokens;  // 2^32 / tokens of a page, rounded up: exact for positions below 2^32 / tokens
  float log2_scale;
  uint32_t* drawn;  // tickets, then CTAs that have drawn their last; zero between launches
  uint32_t* finished;
};

// What the copying warp tells a warpgroup with its queries.
struct Task {
  PrefillTile tile;
  int head;  // -1: no more
};

struct Shared {
  uint64_t full[12], empty[12];  // of ring slots
  uint64_t queries_full[kGroups], queries_empty[kGroups];
  Task task[kGroups][2];  // by the parity of queries_full: the one before is still to be read
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// A value that all lanes have, so that the compiler knows it.
__device__ __forceinline__ int uniform(int value) { return __shfl_sync(~0u, value, 0); }

struct Cursor {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void advance(int slots) {
    if (++slot == slots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// ---- Copying warp --------------------------------------------------------------------------------------------------

// Its own arithmetic counts: a block takes the warpgroups some 3,000 clocks, and this is one warp. So each lane has one
// box of every block, and nothing is divided but once a tile.
template <int kHeadDim>
struct Producer {
  using L = Layout<kHeadDim>;
  // What this lane copies of a block; the same of K and of V.
  struct Box {
    int page;   // -1: nothing
    int row;    // of the page
    int head;   // of KV
    int bytes;  // of the block, by all lanes
  };
  const WgmmaParameters& p;
  Shared& shared;
  uint32_t queries, ring;
  int lane = threadIdx.x % 32;
  int place = lane % (kBlockPositions / p.box) * p.box;  // of this lane's box in a block
  int half = lane / (kBlockPositions / p.box);           // of its dims; behind the last: no box
  Cursor at{0, 1};                                       // parity of `empty`: passes at once in the first round

  __device__ bool draw(Task& task) const {
    int ticket = 0;
    if (lane == 0) ticket = static_cast<int>(atomicAdd(p.drawn, 1u));
    ticket = __shfl_sync(~0u, ticket, 0);
    task.head = ticket % p.num_heads;
    return p.tiles.find<kTile>(ticket / p.num_heads, task.tile);
  }

  // The last CTA to draw its last ticket leaves the counters as it found them.
  __device__ void close() const {
    if (lane != 0) return;
    __threadfence();
    if (atomicAdd(p.finished, 1u) == gridDim.x - 1) {
      *p.drawn = 0;
      *p.finished = 0;
    }
  }

  __device__ void tell(int group, const Task& task, bool with_queries) const {
    barrier_wait(&shared.queries_empty[group], task_parity ^ 1);
    if (lane == 0) {
      shared.task[group][task_parity] = task;
      barrier_expect(&shared.queries_full[group], with_queries ? L::kQueryBytes : 0);
      if (with_queries)
#pragma unroll
        for (int half = 0; half < L::kHalves; ++half)
          copy_box(queries + group * L::kQueryBytes + half * kGroupRows * kHalfRowBytes, &p.q_boxes,
                   task.head * kHeadDim + half * 64, task.tile.row + group * kGroupRows, &shared.queries_full[group]);
    }
    __syncwarp();
  }

  // REQUIRES: base < tile.end
  __device__ Box box_of(const PrefillTile& tile, int kv_head, int base) const {
    const int position = base + place, index = static_cast<int>(__umulhi(position, p.inverse_tokens));
    Box box{-1, position - index * p.kv.block_tokens, kv_head,
            min(kBlockPositions, (tile.end - base + p.box - 1) & -p.box) * kHeadDim * 2};
    if (position < tile.end && half < L::kHalves) box.page = p.block_tables[tile.slot * p.block_table_stride + index];
    return box;
  }

  // Boxes lie in positions order, the first half of dims before the second.
  __device__ void copy(const Box& box, int plane) {
    barrier_wait(&shared.empty[at.slot], at.parity);
    if (lane == 0) barrier_expect(&shared.full[at.slot], box.bytes);
    __syncwarp();
    if (box.page >= 0)
      copy_box(ring + at.slot * L::kBlockBytes + (half * kBlockPositions + place) * kHalfRowBytes, &p.kv_boxes,
               half * 64, box.row, box.head, plane, box.page, &shared.full[at.slot]);
    at.advance(L::kSlots);
  }

  uint32_t task_parity = 0;

  __device__ void run() {
    wait_for_predecessor();
    const int heads_of_kv = p.num_heads / p.kv.num_heads;
    Task task;
    bool any = draw(task);
    while (any) {
      const PrefillTile tile = task.tile;
      const int kv_head = task.head / heads_of_kv;
      Box box = box_of(tile, kv_head, 0);
      copy(box, 0);
      for (int group = 0; group < kGroups; ++group) tell(group, task, true);
      task_parity ^= 1;
      copy(box, 1);
      any = draw(task);
      for (int base = kBlockPositions; base <= tile.position; base += kBlockPositions) {
        box = box_of(tile, kv_head, base);
        copy(box, 0);
        copy(box, 1);
      }
    }
    close();
    task.head = -1;
    for (int group = 0; group < kGroups; ++group) tell(group, task, false);
  }
};

// ---- A warpgroup ---------------------------------------------------------------------------------------------------

template <int kHeadDim>
struct Consumer {
  using L = Layout<kHeadDim>;
  static constexpr int kUnits = kBlockPositions / kUnitPositions;
  static constexpr int kOut = kHeadDim / 2;  // of a thread: rows g, g + 8; dims 8 i + 2t, + 1
  const WgmmaParameters& p;
  Shared& shared;
  uint32_t queries, ring;  // queries: this warpgroup's
  int group;
  int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  Cursor at;

  __device__ void sync_group() const { asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory"); }

  __device__ void wait_full(Cursor slot) const { barrier_wait(&shared.full[slot.slot], slot.parity); }
  __device__ void release(Cursor slot) const {
    if (lane == 0) barrier_arrive(shared_address(&shared.empty[slot.slot]));
  }
  __device__ Cursor next() {
    const Cursor slot = at;
    at.advance(L::kSlots);
    return slot;
  }

  __device__ uint64_t keys_of(Cursor slot) const { return swizzled_operand(ring + slot.slot * L::kBlockBytes); }
  __device__ uint64_t values_of(Cursor slot) const {
    return columns_operand(ring + slot.slot * L::kBlockBytes, kBlockPositions * kHalfRowBytes);
  }
  // Step j of the scores' chain: 16 dims.
  __device__ void score_step(float (&scores)[64], uint64_t queries, uint64_t keys, int j) const {
    warpgroup_multiply<128>(scores, advance_operand(queries, j / 4 * (kGroupRows * kHalfRowBytes) + j % 4 * 32),
                            advance_operand(keys, j / 4 * (kBlockPositions * kHalfRowBytes) + j % 4 * 32), j > 0);
  }
  template <int kCount>
  __device__ void output_step(float (&out)[kCount], const uint32_t (&weights)[4], uint64_t values, int unit) const {
    multiply_columns(out, weights, advance_operand(values, unit * kUnitPositions * kHalfRowBytes), unit > 0);
  }

  // V behind the segment's end becomes zeros: what lies there was not copied, or is another sequence's.
  __device__ void clear_values(Cursor slot, int stored) const {
    uint8_t* values = reinterpret_cast<uint8_t*>(__cvta_shared_to_generic(ring + slot.slot * L::kBlockBytes));
    for (int i = threadIdx.x % 128; i < (kBlockPositions - stored) * L::kHalves * 8; i += 128) {
      const int position = stored + i / (L::kHalves * 8), chunk = i % (L::kHalves * 8);
      *reinterpret_cast<uint4*>(values + chunk / 8 * (kBlockPositions * kHalfRowBytes) + position * kHalfRowBytes +
                                chunk % 8 * 16) = make_uint4(0, 0, 0, 0);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    sync_group();
  }

  // Thread's scores: rows g (r = 0) and g + 8 of its warp's 16; positions 8 i + 2t, + 1.
  __device__ void mask(float (&scores)[64]) const {
    const int row = group * kGroupRows + warp * 16 + lane / 4;  // sees positions up to its own
#pragma unroll
    for (int i = 0; i < 64; ++i)
      if (i / 4 * 8 + lane % 4 * 2 + (i & 1) > row + ((i >> 1) & 1) * 8) scores[i] = kNothing;
  }
  __device__ void find_maxima(const float (&scores)[64], float (&maximum)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float highest[2] = {scores[2 * r], scores[2 * r + 1]};
#pragma unroll
      for (int i = 1; i < 16; ++i)
#pragma unroll
        for (int k = 0; k < 2; ++k) highest[k] = fmaxf(highest[k], scores[4 * i + 2 * r + k]);
      maximum[r] = fmaxf(highest[0], highest[1]);
      maximum[r] = fmaxf(maximum[r], __shfl_xor_sync(~0u, maximum[r], 1));
      maximum[r] = block_maximum(fmaxf(maximum[r], __shfl_xor_sync(~0u, maximum[r], 2)), p.log2_scale);
    }
  }
  struct State {
    float maximum[2], sum[2], total[kOut];
  };
  struct Factors {
    MergeFactors of[2];
  };
  __device__ Factors merge_sums(State& state, const float (&maximum)[2], const float (&sums)[4]) const {
    Factors factors;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      factors.of[r] = merge_maximum(state.maximum[r], maximum[r]);
      state.sum[r] = merge(state.sum[r], sums[2 * r], factors.of[r]);
    }
    return factors;
  }
  __device__ void merge_output(State& state, const float (&out)[kOut], const Factors& factors) const {
#pragma unroll
    for (int i = 0; i < kOut; ++i) state.total[i] = merge(state.total[i], out[i], factors.of[(i >> 1) & 1]);
  }

  __device__ void start_scores(float (&scores)[64], uint64_t keys) const {
    const uint64_t query = renewed(swizzled_operand(queries));
    warpgroup_fence();
#pragma unroll
    for (int j = 0; j < kHeadDim / 16; ++j) score_step(scores, query, keys, j);
    warpgroup_commit();
  }
  // Scores become weights, as multiply_add's a, and their sums, part after part; a part's products begin at once.
  __device__ void start_output(float (&out)[kOut], float (&sums)[4], uint32_t (&weights)[kUnits][4],
                               const float (&scores)[64], const float (&maximum)[2], uint64_t values) const {
    constexpr int kPartUnits = kUnits / kParts;
    sums[0] = sums[1] = sums[2] = sums[3] = 0.0f;
#pragma unroll
    for (int first = 0; first < kUnits; first += kPartUnits) {
#pragma unroll
      for (int unit = first; unit < first + kPartUnits; ++unit) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          weights[unit][i] = pack_bf16(weight_of(scores[unit * 8 + 2 * i], p.log2_scale, maximum[i & 1]),
                                       weight_of(scores[unit * 8 + 2 * i + 1], p.log2_scale, maximum[i & 1]));
        multiply_add(sums, weights[unit][0], weights[unit][1], weights[unit][2], weights[unit][3], kOnes, kOnes);
      }
      keep_in_place(weights);
      warpgroup_fence();
#pragma unroll
      for (int unit = first; unit < first + kPartUnits; ++unit) output_step(out, weights[unit], values, unit);
      warpgroup_commit();
    }
  }

  // A block whose scores are there. kLast: the tile's last, whose V has `stored` positions; else the scores of the next
  // block are there afterwards.
  template <bool kLast>
  __device__ void fold_block(State& state, float (&scores)[64], int stored) {
    float maximum[2], sums[4], out[kOut];
    uint32_t weights[kUnits][4];
    if (kLast) mask(scores);
    find_maxima(scores, maximum);
    const Cursor v = next();
    wait_full(v);
    if (kLast && stored < kBlockPositions) clear_values(v, stored);
    start_output(out, sums, weights, scores, maximum, renewed(values_of(v)));
    const Factors factors = merge_sums(state, maximum, sums);
    warpgroup_wait<0>();
    keep_in_place(out);
    release(v);
    if constexpr (!kLast) {
      const Cursor k = next();
      wait_full(k);
      start_scores(scores, renewed(keys_of(k)));
      wait_full(k);  // it is: a branch, across which the compiler doesn't move the merge, in between the products
      keep_in_place(out);
      merge_output(state, out, factors);
      warpgroup_wait<0>();
      keep_in_place(scores);
      release(k);
    } else {
      merge_output(state, out, factors);
    }
  }

  __device__ void write(const State& state, const Task& task) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = group * kGroupRows + warp * 16 + lane / 4 + r * 8, position = task.tile.position + row;
      const bool inside = position >= task.tile.begin && position < task.tile.end;
      const Quotient quotient(state.sum[r]);
      bf16* to = p.out + (task.tile.row + row) * p.out_stride + task.head * kHeadDim;
#pragma unroll
      for (int quad = 0; quad < kHeadDim / 32; ++quad) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          words[i] = pack_bf16(quotient.of(state.total[quad * 16 + 4 * i + 2 * r]),
                               quotient.of(state.total[quad * 16 + 4 * i + 2 * r + 1]));
        store_quad(to + quad * 32, inside, words);
      }
    }
  }

  __device__ void run() {
    for (uint32_t parity = 0;; parity ^= 1) {
      barrier_wait(&shared.queries_full[group], parity);
      const int last_base = uniform(shared.task[group][parity].tile.position);
      if (uniform(shared.task[group][parity].head) < 0) break;
      State state;
      state.maximum[0] = state.maximum[1] = kNothing;
      state.sum[0] = state.sum[1] = 0.0f;
#pragma unroll
      for (int i = 0; i < kOut; ++i) state.total[i] = 0.0f;

      float scores[64];
      const Cursor k = next();
      wait_full(k);
      start_scores(scores, renewed(keys_of(k)));
      warpgroup_wait<0>();
      keep_in_place(scores);
      release(k);
      for (int base = 0; base < last_base; base += kBlockPositions) fold_block<false>(state, scores, kBlockPositions);
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_address(&shared.queries_empty[group]));
      const Task& task = shared.task[group][parity];
      fold_block<true>(state, scores, task.tile.end - last_base);
      write(state, task);
    }
  }
};

#endif

template <int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1) prefill_wgmma_kernel(const __grid_constant__ WgmmaParameters p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using L = Layout<kHeadDim>;
  extern __shared__ __align__(1024) uint8_t dynamic[];
  __shared__ Shared shared;
  const uint32_t queries = (shared_address(dynamic) + 1023) & ~1023u, ring = queries + kGroups * L::kQueryBytes;
  const int warpgroup = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    let_successor_start();
    for (int slot = 0; slot < L::kSlots; ++slot) {
      barrier_init(&shared.full[slot], 1);
      barrier_init(&shared.empty[slot], 4 * kGroups);
    }
    for (int group = 0; group < kGroups; ++group) {
      barrier_init(&shared.queries_full[group], 1);
      barrier_init(&shared.queries_empty[group], 4);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (warpgroup == 0) {
    give_registers<24>();
    if (threadIdx.x < 32) Producer<kHeadDim>{p, shared, queries, ring}.run();
  } else {
    take_registers<240>();
    const int group = uniform(warpgroup - 1);
    Consumer<kHeadDim>{p, shared, queries + group * L::kQueryBytes, ring, group}.run();
  }
#else
  __trap();  // chosen for Hopper only, and built for it as 90a
#endif
}

template <int kHeadDim>
void launch_wgmma(cudaStream_t stream, const WgmmaParameters& p, int ctas) {
  launch(stream,
         {.grid = dim3(static_cast<unsigned>(ctas)),
          .block = dim3(kThreads),
          .shared_bytes = Layout<kHeadDim>::kSharedBytes},
         "prefill attention", prefill_wgmma_kernel<kHeadDim>, p);
}

}  // namespace

void prepare_prefill_wgmma() {
  prepare_kernel(prefill_wgmma_kernel<64>, Layout<64>::kSharedBytes, "prefill attention");
  prepare_kernel(prefill_wgmma_kernel<128>, Layout<128>::kSharedBytes, "prefill attention");
}

void prefill_wgmma(cudaStream_t stream, int num_sms, const AttentionProblem& problem, const PrefillSegments& segments,
                   uint32_t* counters) {
  if (segments.rows.rows == 0) return;
  const KvView& kv = problem.kv;
  const int box = box_positions(kv.block_tokens);
  const WgmmaParameters p{.kv_boxes = kv_map(kv, box),
                          .q_boxes = make_tensor_map({.x = problem.q,
                                                      .rows = problem.num_rows,
                                                      .features = int64_t{problem.num_heads} * kv.head_dim,
                                                      .stride = problem.q_stride,
                                                      .box_rows = kGroupRows}),
                          .tiles = {segments.segments, segments.count, problem.seq_len},
                          .kv = kv,
                          .block_tables = problem.block_tables,
                          .block_table_stride = problem.block_table_stride,
                          .out = problem.out,
                          .out_stride = problem.out_stride,
                          .num_heads = problem.num_heads,
                          .box = box,
                          .inverse_tokens = static_cast<uint32_t>(((uint64_t{1} << 32) - 1) / kv.block_tokens + 1),
                          .log2_scale = problem.scale * kLog2E,
                          .drawn = counters,
                          .finished = counters + 1};
  const int64_t most_tiles = segments.rows.rows / kTile + 2 * segments.max_count;
  const int ctas = static_cast<int>(std::min<int64_t>(num_sms, most_tiles * problem.num_heads));
  if (kv.head_dim == 128)
    launch_wgmma<128>(stream, p, ctas);
  else
    launch_wgmma<64>(stream, p, ctas);
}

}  // namespace rtp_llm::cuda
