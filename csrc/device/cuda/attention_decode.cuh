// Decode attention: the device code. One kernel for every schedule.
//
// Work is one list of T blocks (row, head group, block of 128 positions); a head group is up to 8 query heads of one KV
// head. CTA c folds the blocks [cut(c), cut(c + 1)). A pair (row, head group) that begins in a CTA is walked with a
// running state; a pair that a cut divides leaves its states in the workspace: the first CTA one of all its blocks, the
// others one a block; the CTA that comes last merges them in order. So the result doesn't depend on the cuts.
//
// With kRopes the product of q, k, v comes as it is: the CTA that folds a pair's part norms and rotates its queries
// itself; the one that has the pair's last block makes k and v of the row's own position, too: it stores them, and lays
// them over what the pool held there, in the ring.
//
// A CTA is 4 consumer warps and a copying warp. Ring slot = 64 positions of one plane of one head, in halves of 64
// dims, 128 bytes a position, swizzled; a block takes up to four: K0 K1 V0 V1 (K0 V0 if it has 64 positions or fewer).
// Consumer warp w computes the scores of positions 32w .. 32w + 31 and the output of a quarter of the dims.
#pragma once

#include <cuda.h>

#include "device/cuda/attention_fold.cuh"
#include "device/cuda/rope_vector.cuh"
#include "device/kv_view.h"

namespace rtp_llm::cuda {

inline constexpr int kDecodeWarps = 4;
inline constexpr int kDecodeThreads = 32 * (kDecodeWarps + 1);
inline constexpr int kSlotPositions = 64;
inline constexpr int kMaxGroupHeads = 8;    // columns of one multiply_add
inline constexpr int kMaxDecodeSlots = 16;  // of a ring
inline constexpr int kMaxDecodeRows = 512;  // of a launch

struct DecodeParameters {
  CUtensorMap map;  // kv_map, boxes of `box` positions
  KvView kv;
  const bf16* q;
  int64_t q_stride;
  bf16* out;
  int64_t out_stride;
  const int32_t* row_slot;  // of this launch's first row, like row_offset, q and out
  const int32_t* row_offset;
  const int32_t* seq_len;
  const int32_t* block_tables;
  int64_t block_table_stride;
  // kRopes: k and v of a row lie behind its query heads.
  const float* q_norm;  // [head_dim] or null; both or neither
  const float* k_norm;
  const float* inv_freq;  // [head_dim / 2]
  float norm_epsilon;
  float* partial_out;     // [shares][max_blocks][group_heads][head_dim]
  float2* partial_state;  // [shares][max_blocks][group_heads]: maximum, sum
  uint32_t* arrivals;     // [shares], zero between launches
  float log2_scale;
  int rows;
  int num_heads;
  int heads_per_kv;   // query heads of a KV head
  int groups_per_kv;  // head groups of a KV head
  int group_heads;    // query heads of a head group, the last of a KV head may have fewer
  int max_blocks;     // of 128 positions, of one row
  int box;            // positions of one copy: divides 64 and the pool's block
  int slots;
  int snap;
  uint32_t zero;  // 0, which the compiler doesn't know
};

// ---- The list of blocks and its cuts -------------------------------------------------------------------------------

// Even cuts, moved to the end of a pair that is no further than `tolerance`: fewer pairs are divided, shares differ.
struct Cuts {
  int total;                // T
  int shares;               // that have work
  int quotient, remainder;  // of total / shares
  int tolerance;

  __device__ Cuts(int total, int most_shares, int snap)
      : total(total),
        shares(min(most_shares, total)),
        quotient(total / shares),
        remainder(total % shares),
        tolerance(quotient * snap / 16) {}
  Cuts() = default;
  // floor(share * total / shares). REQUIRES: share and shares at most kMaxShares.
  __device__ int even(int share) const { return share * quotient + share * remainder / shares; }
  // The first share whose even cut is `block` or later.
  __device__ int first_share_from(int block) const {
    const float near = static_cast<float>(block) * (static_cast<float>(shares) / static_cast<float>(total));
    int share = max(0, static_cast<int>(near) - 1);
    while (even(share) < block) ++share;
    return share;
  }
};

// Of all rows, in shared memory.
struct WorkList {
  int* first;     // [rows + 1]: blocks of all head groups before row r
  int* contexts;  // [rows]
  int* slots;     // [rows]
  int rows, groups;

  static __host__ __device__ int bytes(int rows) { return (3 * rows + 1) * 4; }
  __device__ WorkList(uint8_t* at, int rows, int groups)
      : first(reinterpret_cast<int*>(at)),
        contexts(first + rows + 1),
        slots(contexts + rows),
        rows(rows),
        groups(groups) {}

  __device__ int row_of(int block) const {
    int low = 0, high = rows;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (first[middle] <= block)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
  __device__ int row_blocks(int row) const { return (first[row + 1] - first[row]) / groups; }
  __device__ int cut(const Cuts& cuts, int share) const {
    if (share >= cuts.shares) return cuts.total;
    const int at = cuts.even(share), row = row_of(at), blocks = row_blocks(row);
    const int start = at - (at - first[row]) % blocks;
    if (at - start <= cuts.tolerance) return start;
    return start + blocks - at <= cuts.tolerance ? start + blocks : at;
  }
};

// ---- Ring ----------------------------------------------------------------------------------------------------------

struct RingCursor {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void advance(int slots) {
    if (++slot == slots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// 16-byte chunk of a position's vector, bytes from the slot's begin.
__device__ __forceinline__ uint32_t chunk_offset(int position, int chunk) {
  return (chunk >> 3) * (kSlotPositions * 128) + position * 128 + (((chunk & 7) ^ (position & 7)) << 4);
}

__device__ __forceinline__ void sync_consumers() { asm volatile("bar.sync 1, 128;" ::: "memory"); }

// ---- Copying warp --------------------------------------------------------------------------------------------------

// One box of a page that a lane looks up.
struct PageBox {
  int block = -1;  // -1: nothing to copy
  int token = 0;
  int head = 0;
  bool fresh = false;  // holds positions that the predecessor stores
};

template <int kHeadDim, bool kBulk, bool kRopes>
struct DecodeProducer {
  static constexpr int kSlotBytes = kSlotPositions * kHeadDim * 2;
  const DecodeParameters& p;
  const WorkList& work;
  uint32_t ring;
  uint64_t *full, *empty;

  __device__ PageBox look_up(int block, int box_of_block) const {
    PageBox box;
    const int row = work.row_of(block), blocks = work.row_blocks(row), in_row = block - work.first[row];
    const int position = in_row % blocks * kBlockPositions + box_of_block * p.box;
    if (position >= work.contexts[row]) return box;
    const int slot = work.slots[row];
    box.block = p.block_tables[slot * p.block_table_stride + position / p.kv.block_tokens];
    box.token = position % p.kv.block_tokens;
    box.head = in_row / blocks / p.groups_per_kv;
    box.fresh = !kRopes && position + p.box > p.seq_len[slot];
    return box;
  }

  // `first_lane` and the lanes behind it hold the `boxes` boxes of this slot.
  __device__ void copy_slot(const PageBox& mine, int first_lane, int boxes, int plane, int slot, int lane) const {
    const uint32_t to = ring + slot * kSlotBytes;
    if constexpr (kBulk) {
#if __CUDA_ARCH__ >= 900
      const int per_slot = kSlotPositions / p.box;
      if (lane == 0) barrier_expect(&full[slot], boxes * p.box * kHeadDim * 2);
      __syncwarp();
      const int index = lane - first_lane;
      if (index >= 0 && index < per_slot && mine.block >= 0)
#pragma unroll
        for (int half = 0; half < kHeadDim / 64; ++half)
          copy_box(to + half * kSlotPositions * 128 + index * p.box * 128, &p.map, half * 64, mine.token, mine.head,
                   plane, mine.block, &full[slot]);
#endif
    } else {
      constexpr int kChunks = kHeadDim / 8;
      const int chunk = lane % kChunks;
      for (int position = lane / kChunks; position < kSlotPositions; position += 32 / kChunks) {
        const int holder = first_lane + position / p.box;
        const int block = __shfl_sync(~0u, mine.block, holder), token = __shfl_sync(~0u, mine.token, holder);
        const int head = __shfl_sync(~0u, mine.head, holder);
        if (block < 0) continue;
        copy_async_16(to + chunk_offset(position, chunk),
                      p.kv.base + block * p.kv.block_stride + p.kv.plane_offset[plane] + head * p.kv.head_stride +
                          (token + position % p.box) * p.kv.token_stride + chunk * 16);
      }
      barrier_arrive_after_copies(&full[slot]);
    }
  }

  __device__ void run(int begin, int end, int lane) const {
    const int per_block = kBlockPositions / p.box, batch = 32 / per_block;
    RingCursor at;
    bool first_use = true, waited = false;
    for (int block = begin; block < end; block += batch) {
      PageBox mine;
      if (block + lane / per_block < end) mine = look_up(block + lane / per_block, lane % per_block);
      for (int i = 0; i < min(batch, end - block); ++i) {
        const uint32_t lanes_of_block = ((1u << per_block) - 1) << (i * per_block);
        const uint32_t present = __ballot_sync(~0u, mine.block >= 0) & lanes_of_block;
        if (!waited && (__ballot_sync(~0u, mine.fresh) & lanes_of_block)) {
          wait_for_predecessor();
          waited = true;
        }
        for (int plane = 0; plane < 2; ++plane)
          for (int half = 0; half < 2; ++half) {
            const int first_lane = i * per_block + half * (per_block / 2);
            const int boxes = __popc(present & (((1u << (per_block / 2)) - 1) << first_lane));
            if (boxes == 0) continue;
            if (!first_use) barrier_wait(&empty[at.slot], at.parity ^ 1);
            copy_slot(mine, first_lane, boxes, plane, at.slot, lane);
            at.advance(p.slots);
            if (at.slot == 0) first_use = false;
          }
      }
    }
  }
};

// ---- Merging a divided pair ----------------------------------------------------------------------------------------

// Of a pair's states: entry 0 holds its first `prefix` blocks, entry b block b. Eight are requested at a time; no
// branch lies behind the loads, past which the compiler would move them one by one. Not inlined: its registers would be
// spilled around the main loop.
template <int kHeadDim>
__device__ __noinline__ void merge_pair(const float* partial_out, const float2* partial_state, int group_heads,
                                        int heads, int prefix, int blocks, bf16* out, int warp, int lane) {
  constexpr int kAhead = 8, kDims = kHeadDim / 32;
  const int entries = blocks - prefix + 1;
  for (int head = warp; head < heads; head += kDecodeWarps) {
    float maximum = kNothing, sum = 0.0f, total[kDims] = {};
    for (int first = 0; first < entries; first += kAhead) {
      float2 state[kAhead];
      float value[kAhead][kDims];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int entry = min(first + i, entries - 1);
        const int64_t index = int64_t{entry == 0 ? 0 : prefix + entry - 1} * group_heads + head;
        asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];"
                     : "=f"(state[i].x), "=f"(state[i].y)
                     : "l"(partial_state + index)
                     : "memory");
        const float* from = partial_out + index * kHeadDim + lane * kDims;
        if constexpr (kDims == 4)
          asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                       : "=f"(value[i][0]), "=f"(value[i][1]), "=f"(value[i][2]), "=f"(value[i][3])
                       : "l"(from)
                       : "memory");
        else
          asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];"
                       : "=f"(value[i][0]), "=f"(value[i][1])
                       : "l"(from)
                       : "memory");
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        // Behind the end: nothing, which changes no bit.
        const MergeFactors factors = merge_maximum(maximum, first + i < entries ? state[i].x : kNothing);
        sum = merge(sum, state[i].y, factors);
#pragma unroll
        for (int d = 0; d < kDims; ++d) total[d] = merge(total[d], value[i][d], factors);
      }
    }
    const Quotient quotient(sum);
    uint32_t* to = reinterpret_cast<uint32_t*>(out + head * kHeadDim + lane * kDims);
#pragma unroll
    for (int d = 0; d < kDims; d += 2) to[d / 2] = pack_bf16(quotient.of(total[d]), quotient.of(total[d + 1]));
  }
}

// ---- Consumer warps ------------------------------------------------------------------------------------------------

// What the consumer warps exchange: within a block, and with kRopes before a pair's first.
template <int kHeadDim>
struct DecodeExchange {
  float maximum[kDecodeWarps][8];                       // of a warp's positions, by query head
  uint2 weights[kBlockPositions / kUnitPositions][32];  // p of a unit as multiply_add's b, by lane
  int last;                                             // of a divided pair: this CTA merges
  Rotation angles[kHeadDim / 2];                        // of the row whose pair is folded
  // Its query heads, k, v; 16 bytes more a row, for the banks.
  __align__(16) bf16 vectors[kMaxGroupHeads + 2][kHeadDim + 8];
};

template <int kHeadDim, bool kRopes>
struct DecodeConsumer {
  static constexpr int kSlotBytes = kSlotPositions * kHeadDim * 2;
  static constexpr int kSteps = kHeadDim / 16;  // of a score's chain
  static constexpr int kTiles = kHeadDim / 64;  // of 16 dims that a warp owns
  static constexpr int kChunks = kHeadDim / 8;  // of 16 bytes, of a vector
  static constexpr int kLanes = RopeVector<kHeadDim>::kLanes;
  const DecodeParameters& p;
  const WorkList& work;
  DecodeExchange<kHeadDim>& exchange;
  uint32_t ring;
  uint64_t *full, *empty;
  int warp, lane;
  int row_in_tile = lane >> 2, pair_in_tile = lane & 3;  // g and t of the fragments

  // Running state of one pair: heads 2t and 2t + 1, dims 16 tile + g and + 8 of the warp's.
  float maximum[2], sum[2], total[kTiles][4];
  uint32_t query[kSteps][2];       // as multiply_add's a: head g, rows 8 to 15 are zeros
  uint32_t next_query[kSteps][2];  // of the pair after this one; with kRopes the next three instead
  uint4 next_low, next_high;       // this thread's part of one vector of it
  int angles_row = -1;             // of exchange.angles
  // Of k (lanes below kChunks) or v (lanes from 16) at the row's position: what this lane lays over the ring.
  uint4 own;

  // A pair of the work list.
  struct Pair {
    int row, start, blocks;  // start: its first block in the list
    int kv_head;
    int head, heads;  // query heads [head, head + heads)
    bool stores;      // the group of its KV head that stores k and v
  };
  __device__ Pair pair_of(int block) const {
    const int row = work.row_of(block), blocks = work.row_blocks(row), group = (block - work.first[row]) / blocks;
    const int kv_head = group / p.groups_per_kv, in_kv_head = group % p.groups_per_kv * p.group_heads;
    return {row,
            work.first[row] + group * blocks,
            blocks,
            kv_head,
            kv_head * p.heads_per_kv + in_kv_head,
            min(p.group_heads, p.heads_per_kv - in_kv_head),
            in_kv_head == 0};
  }

  __device__ void reset() {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      maximum[k] = kNothing;
      sum[k] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kTiles; ++i) total[i][0] = total[i][1] = total[i][2] = total[i][3] = 0.0f;
  }

  // The vector of a pair that this thread has a part of: a query head, k or v; -1: none.
  __device__ int vector_of(const Pair& pair) const {
    const int vector = threadIdx.x / kLanes;
    return vector < pair.heads || vector == kMaxGroupHeads || vector == kMaxGroupHeads + 1 ? vector : -1;
  }

  __device__ void request_query(const Pair& pair) {
    if constexpr (kRopes) {
      const int vector = vector_of(pair), lane = threadIdx.x % kLanes;
      if (vector < 0) return;
      const int head = vector < kMaxGroupHeads
                           ? pair.head + vector
                           : p.num_heads + (vector - kMaxGroupHeads) * p.kv.num_heads + pair.kv_head;
      const bf16* from = p.q + pair.row * p.q_stride + head * kHeadDim + lane * 8;
      next_low = load_16(from);
      next_high = load_16(from + kHeadDim / 2);
      return;
    }
    const bf16* from = p.q + pair.row * p.q_stride + (pair.head + row_in_tile) * kHeadDim + 2 * pair_in_tile;
    const int heads = pair.heads;
#pragma unroll
    for (int j = 0; j < kSteps; ++j)
#pragma unroll
      for (int k = 0; k < 2; ++k)
        next_query[j][k] = row_in_tile < heads ? *reinterpret_cast<const uint32_t*>(from + j * 16 + k * 8) : 0u;
  }

  // The angles of a row's position. REQUIRES: a barrier of the consumers before they are read.
  __device__ void find_angles(int row, int context) {
    angles_row = row;
    for (int i = threadIdx.x; i < kHeadDim / 2; i += kDecodeWarps * 32)
      exchange.angles[i] = rotation_of(context - 1, p.inv_freq[i]);
  }

  // Makes what request_query has brought into queries, and into k and v of the row's position, which go into the pool
  // if `stores`.
  __device__ void make_query(const Pair& pair, int context, bool stores) {
    if (angles_row != pair.row) {
      find_angles(pair.row, context);
      sync_consumers();
    }
    const int vector = vector_of(pair), part = threadIdx.x % kLanes;
    RopeVector<kHeadDim> x(next_low, next_high);
    if (p.q_norm != nullptr) {
      const float squares = x.squares();
      if (vector >= 0 && vector <= kMaxGroupHeads)
        x.norm(squares, vector == kMaxGroupHeads ? p.k_norm : p.q_norm, p.norm_epsilon, part);
    }
    if (vector >= 0 && vector <= kMaxGroupHeads) x.turn(exchange.angles, part);
    if (vector >= 0)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<uint4*>(&exchange.vectors[vector][half * kHeadDim / 2 + part * 8]) = x.rounded(half);
    sync_consumers();
#pragma unroll
    for (int j = 0; j < kSteps; ++j)
#pragma unroll
      for (int k = 0; k < 2; ++k)
        query[j][k] =
            row_in_tile < pair.heads
                ? *reinterpret_cast<const uint32_t*>(&exchange.vectors[row_in_tile][j * 16 + k * 8 + 2 * pair_in_tile])
                : 0u;
    const int plane = lane < 16 ? 0 : 1, chunk = plane == 0 ? lane % kChunks : own_chunk();
    own = *reinterpret_cast<const uint4*>(&exchange.vectors[kMaxGroupHeads + plane][chunk * 8]);
    if (stores && vector >= kMaxGroupHeads) {
      const int slot = work.slots[pair.row], position = context - 1;
      const int64_t block = p.block_tables[slot * p.block_table_stride + position / p.kv.block_tokens];
      uint8_t* to = p.kv.base + block * p.kv.block_stride + p.kv.plane_offset[vector - kMaxGroupHeads] +
                    pair.kv_head * p.kv.head_stride + position % p.kv.block_tokens * p.kv.token_stride + part * 16;
#pragma unroll
      for (int half = 0; half < 2; ++half) *reinterpret_cast<uint4*>(to + half * kHeadDim) = x.rounded(half);
    }
  }

  // The chunk of v that this lane lays over the ring: of the dims that the warp owns.
  __device__ int own_chunk() const { return 2 * warp * kTiles + lane % (2 * kTiles); }

  // Lays k or v of the row's own position over what the slot holds there. REQUIRES: the slot is full; whole warps.
  __device__ void lay_over(uint32_t slot, int position, int chunk, bool mine) const {
    if (mine) {
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(slot + chunk_offset(position, chunk)), "r"(own.x),
                   "r"(own.y), "r"(own.z), "r"(own.w)
                   : "memory");
      barrier_reuse_fence();
    }
    __syncwarp();
  }

  // Raw scores of this warp's 32 positions for head g: [tile of 8 positions][positions 2t, 2t + 1].
  __device__ void scores_of(uint32_t slot, int first_position, float (&scores)[4][2]) const {
    float sums[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0f;
#pragma unroll
    for (int j = 0; j < kSteps; ++j)
#pragma unroll
      for (int unit = 0; unit < 2; ++unit) {
        uint32_t k[4];
        load_matrices(k, slot + chunk_offset(first_position + unit * 16 + (lane >> 4) * 8 + (lane & 7),
                                             2 * j + ((lane >> 3) & 1)));
        multiply_add(sums[2 * unit], query[j][0], 0u, query[j][1], 0u, k[0], k[1]);
        multiply_add(sums[2 * unit + 1], query[j][0], 0u, query[j][1], 0u, k[2], k[3]);
      }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[i][0] = sums[i][0];
      scores[i][1] = sums[i][1];
    }
  }

  // out[tile] += V^T p and sums += ones p over the units of one slot. `visible`: positions of the slot that count.
  __device__ void add_values(uint32_t slot, int first_unit, int visible, float (&out)[kTiles][4],
                             float (&sums)[4]) const {
#pragma unroll
    for (int unit = 0; unit < 4; ++unit) {
      const int left = visible - unit * kUnitPositions;
      if (left <= 0) break;
      const uint2 weights = exchange.weights[first_unit + unit][lane];
      uint32_t keep[2] = {~0u, ~0u};  // V behind the context's end may be anything
      if (left < kUnitPositions)
#pragma unroll
        for (int k = 0; k < 2; ++k)
          keep[k] = (2 * pair_in_tile + 8 * k < left ? 0xffffu : 0u) |
                    (2 * pair_in_tile + 8 * k + 1 < left ? 0xffff0000u : 0u);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        uint32_t v[4];
        load_matrices_transposed(v, slot + chunk_offset(unit * 16 + (lane >> 4) * 8 + (lane & 7),
                                                        2 * (warp * kTiles + i) + ((lane >> 3) & 1)));
        multiply_add(out[i], v[0] & keep[0], v[1] & keep[0], v[2] & keep[1], v[3] & keep[1], weights.x, weights.y);
      }
      multiply_add(sums, kOnes, kOnes, kOnes, kOnes, weights.x, weights.y);
    }
  }

  // Folds one block into the running state. `visible`: its positions that count, 1 to 128. `made`: its last position is
  // the row's own, of which the ring holds nothing yet.
  __device__ void fold_block(RingCursor& at, int visible, bool made) {
    const int own_position = kRopes && made ? visible - 1 : -1;
    const bool second = visible > kSlotPositions;
    const RingCursor k0 = at;
    at.advance(p.slots);
    const RingCursor k1 = at;
    if (second) at.advance(p.slots);
    const RingCursor v0 = at;
    at.advance(p.slots);
    const RingCursor v1 = at;
    if (second) at.advance(p.slots);

    float scores[4][2], highest = kNothing;
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[i][0] = scores[i][1] = kNothing;
    if (warp < 2 || second) {
      const RingCursor k = warp < 2 ? k0 : k1;
      barrier_wait(&full[k.slot], k.parity);
      if (kRopes && own_position >= 0 && own_position / 32 == warp)
        lay_over(ring + k.slot * kSlotBytes, own_position % kSlotPositions, lane % kChunks, lane < kChunks);
      scores_of(ring + k.slot * kSlotBytes, (warp & 1) * 32, scores);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (warp * 32 + i * 8 + 2 * pair_in_tile + e >= visible) scores[i][e] = kNothing;
          highest = fmaxf(highest, scores[i][e]);
        }
    }
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
    if (pair_in_tile == 0) exchange.maximum[warp][row_in_tile] = highest;
    sync_consumers();
    if (lane == 0) {  // the maxima have been computed from them, so K's slots have been read
      barrier_arrive(shared_address(&empty[k0.slot]));
      if (second) barrier_arrive(shared_address(&empty[k1.slot]));
    }

    const auto maximum_of = [&](int head) {
      return block_maximum(fmaxf(fmaxf(exchange.maximum[0][head], exchange.maximum[1][head]),
                                 fmaxf(exchange.maximum[2][head], exchange.maximum[3][head])),
                           p.log2_scale);
    };
    const float of_scores = maximum_of(row_in_tile);
    const float of_state[2] = {maximum_of(2 * pair_in_tile), maximum_of(2 * pair_in_tile + 1)};
#pragma unroll
    for (int unit = 0; unit < 2; ++unit) {
      uint32_t weights[2];
#pragma unroll
      for (int k = 0; k < 2; ++k)
        weights[k] = pack_bf16(weight_of(scores[2 * unit + k][0], p.log2_scale, of_scores),
                               weight_of(scores[2 * unit + k][1], p.log2_scale, of_scores));
      exchange.weights[warp * 2 + unit][lane] = make_uint2(weights[0], weights[1]);
    }
    sync_consumers();

    float block_out[kTiles][4], block_sum[4] = {};
#pragma unroll
    for (int i = 0; i < kTiles; ++i) block_out[i][0] = block_out[i][1] = block_out[i][2] = block_out[i][3] = 0.0f;
    const bool owns_value = lane >= 16 && lane < 16 + 2 * kTiles;
    barrier_wait(&full[v0.slot], v0.parity);
    if (kRopes && own_position >= 0 && !second)
      lay_over(ring + v0.slot * kSlotBytes, own_position, own_chunk(), owns_value);
    add_values(ring + v0.slot * kSlotBytes, 0, visible, block_out, block_sum);
    if (second) {
      barrier_wait(&full[v1.slot], v1.parity);
      if (kRopes && own_position >= 0)
        lay_over(ring + v1.slot * kSlotBytes, own_position - kSlotPositions, own_chunk(), owns_value);
      add_values(ring + v1.slot * kSlotBytes, 4, visible - kSlotPositions, block_out, block_sum);
    }
    // An arrival can overtake loads that were only issued: its address depends on all that was loaded.
    uint32_t loaded = 0;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) loaded ^= __float_as_uint(block_out[i][0]);
    loaded &= p.zero;
    if (lane == 0) {
      barrier_arrive(shared_address(&empty[v0.slot]) + loaded);
      if (second) barrier_arrive(shared_address(&empty[v1.slot]) + loaded);
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const MergeFactors factors = merge_maximum(maximum[k], of_state[k]);
      sum[k] = merge(sum[k], block_sum[k], factors);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        total[i][k] = merge(total[i][k], block_out[i][k], factors);
        total[i][k + 2] = merge(total[i][k + 2], block_out[i][k + 2], factors);
      }
    }
  }

  // Leaves the state in the workspace, entry `entry` of those of `share`.
  __device__ void leave(int64_t entry, int heads) const {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int head = 2 * pair_in_tile + k;
      if (head >= heads) continue;
      const int64_t index = entry * p.group_heads + head;
      float* to = p.partial_out + index * kHeadDim + warp * kTiles * 16 + row_in_tile;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        to[i * 16] = total[i][k];
        to[i * 16 + 8] = total[i][k + 2];
      }
      if (warp == 0 && row_in_tile == 0) p.partial_state[index] = make_float2(maximum[k], sum[k]);
    }
  }

  __device__ void write(bf16* out, int heads) const {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int head = 2 * pair_in_tile + k;
      if (head >= heads) continue;
      const Quotient quotient(sum[k]);
      bf16* to = out + head * kHeadDim + warp * kTiles * 16 + row_in_tile;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        to[i * 16] = __float2bfloat16_rn(quotient.of(total[i][k]));
        to[i * 16 + 8] = __float2bfloat16_rn(quotient.of(total[i][k + 2]));
      }
    }
  }

  __device__ void run(const Cuts& cuts, int begin, int end) {
    RingCursor at;
    if (kRopes && begin < end) {
      const Pair pair = pair_of(begin);
      find_angles(pair.row, work.contexts[pair.row]);
    }
    wait_for_predecessor();
    if (begin < end) request_query(pair_of(begin));
    if constexpr (kRopes) sync_consumers();
    for (int block = begin; block < end;) {
      const Pair pair = pair_of(block);
      const int first = block - pair.start, last = min(pair.blocks, end - pair.start);
      const bool whole = first == 0 && last == pair.blocks;
      // The pair's states are named by the share behind its first cut.
      const int first_cut = whole ? 1 : cuts.first_share_from(pair.start + cuts.tolerance + 1);
      const int64_t states = int64_t{first_cut - 1} * p.max_blocks;
      const int context = work.contexts[pair.row];

      if constexpr (kRopes) {
        make_query(pair, context, pair.stores && last == pair.blocks);
      } else {
#pragma unroll
        for (int j = 0; j < kSteps; ++j) {
          query[j][0] = next_query[j][0];
          query[j][1] = next_query[j][1];
        }
      }
      block = pair.start + last;
      if (block < end) request_query(pair_of(block));
      reset();
      for (int b = first; b < last; ++b) {
        fold_block(at, min(kBlockPositions, context - b * kBlockPositions), b == pair.blocks - 1);
        if (!whole && (first > 0 || b == last - 1)) {
          leave(states + (first > 0 ? b : 0), pair.heads);
          reset();
        }
      }
      bf16* out = p.out + pair.row * p.out_stride + pair.head * kHeadDim;
      if (whole)
        write(out, pair.heads);
      else if (comes_last(first_cut, cuts.first_share_from(pair.start + pair.blocks - cuts.tolerance) - first_cut + 1))
        merge_pair<kHeadDim>(p.partial_out + states * p.group_heads * kHeadDim,
                             p.partial_state + states * p.group_heads, p.group_heads, pair.heads,
                             cuts.even(first_cut) - pair.start, pair.blocks, out, warp, lane);
    }
  }

  // Whether this CTA is the last of the `pieces` that leave states of a pair; all of them are then to be seen.
  __device__ bool comes_last(int first_cut, int pieces) const {
    __threadfence();
    sync_consumers();
    if (threadIdx.x == 0) {
      exchange.last = atomicAdd(&p.arrivals[first_cut - 1], 1u) == static_cast<unsigned>(pieces - 1);
      if (exchange.last) p.arrivals[first_cut - 1] = 0;
      __threadfence();
    }
    sync_consumers();
    return exchange.last;
  }
};

// ---- Kernel --------------------------------------------------------------------------------------------------------

// Slots and contexts of all rows, by the whole CTA.
__device__ __forceinline__ void find_rows(const DecodeParameters& p, const WorkList& work) {
  for (int row = threadIdx.x; row < p.rows; row += kDecodeThreads) {
    const int slot = p.row_slot[row];
    work.slots[row] = slot;
    work.contexts[row] = p.seq_len[slot] + p.row_offset[row] + 1;
  }
}

// The blocks before each row, by one warp.
__device__ __forceinline__ void list_work(const WorkList& work, int lane) {
  int before = 0;
  for (int base = 0; base < work.rows; base += 32) {
    const int row = base + lane;
    int blocks = row < work.rows ? (work.contexts[row] + kBlockPositions - 1) / kBlockPositions * work.groups : 0;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int left = __shfl_up_sync(~0u, blocks, step);
      if (lane >= step) blocks += left;
    }
    if (row < work.rows) work.first[row + 1] = before + blocks;
    before += __shfl_sync(~0u, blocks, 31);
  }
  if (lane == 0) work.first[0] = 0;
}

template <int kHeadDim, bool kBulk, bool kRopes>
__global__ void __launch_bounds__(kDecodeThreads, 2) decode_kernel(const __grid_constant__ DecodeParameters p) {
  extern __shared__ __align__(1024) uint8_t dynamic[];
  __shared__ uint64_t full[kMaxDecodeSlots], empty[kMaxDecodeSlots];
  __shared__ DecodeExchange<kHeadDim> exchange;
  __shared__ Cuts cuts;
  __shared__ int bounds[2];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint8_t* ring = dynamic + (1024 - shared_address(dynamic) % 1024) % 1024;
  const WorkList work(ring + p.slots * kSlotPositions * kHeadDim * 2, p.rows, p.kv.num_heads * p.groups_per_kv);

  if (threadIdx.x == 0) let_successor_start();
#if __CUDA_ARCH__ >= 900
  if (kBulk && threadIdx.x == 32) prefetch_map(&p.map);
#endif
  find_rows(p, work);
  if (warp == kDecodeWarps && lane < p.slots) {
    barrier_init(&full[lane], kBulk ? 1 : 32);
    barrier_init(&empty[lane], kDecodeWarps);
  }
  __syncthreads();
  if (warp == kDecodeWarps) {
    list_work(work, lane);
    barrier_init_fence();
    __syncwarp();
    const Cuts all(work.first[p.rows], gridDim.x, p.snap);
    if (lane == 0) cuts = all;
    if (lane < 2) bounds[lane] = work.cut(all, blockIdx.x + lane);
  }
  __syncthreads();
  if (warp == kDecodeWarps) {
    DecodeProducer<kHeadDim, kBulk, kRopes>{p, work, shared_address(ring), full, empty}.run(bounds[0], bounds[1], lane);
    return;
  }
  DecodeConsumer<kHeadDim, kRopes>{p, work, exchange, shared_address(ring), full, empty, warp, lane}.run(
      cuts, bounds[0], bounds[1]);
}

}  // namespace rtp_llm::cuda
