// From the product of q, k, v to where attention reads them, with a RopeTable: one text for qkv_rope_store and for what
// follows the products of a linear.
#pragma once

#include "device/cuda/qkv_rope_store.h"
#include "device/cuda/rope_vector.cuh"

namespace rtp_llm::cuda {

// One of the heads of all rows, q's, then k's, then v's: what happens to its vectors, and where they go. A lane has its
// part of a vector.
template <int kHeadDim>
struct RopeHead {
  static constexpr int kLanes = RopeVector<kHeadDim>::kLanes, kHalf = RopeVector<kHeadDim>::kHalf;

  const RopeStoreProblem& p;
  int lane;  // of the vector's
  bool is_query, is_turned;
  uint8_t* to;          // this lane's part of the vector of row 0 (q), of token 0 (k, v)
  const float* weight;  // or null

  // REQUIRES: the head exists.
  __device__ RopeHead(const RopeStoreProblem& p, int index, int lane) : p(p), lane(lane) {
    const int kv_heads = p.kv.num_heads, of_kv = index - p.num_heads;
    is_query = of_kv < 0;
    is_turned = of_kv < kv_heads;
    weight = is_query ? p.q_norm : is_turned ? p.k_norm : nullptr;
    to = is_query    ? reinterpret_cast<uint8_t*>(p.qkv + int64_t{index} * kHeadDim)
         : is_turned ? p.kv.base + p.kv.plane_offset[0] + of_kv * p.kv.head_stride
                     : p.kv.base + p.kv.plane_offset[1] + (of_kv - kv_heads) * p.kv.head_stride;
    to += lane * 16;
  }

  // What is known of a row before its products are.
  struct Place {
    float4 angles[4];
    int64_t offset;
  };
  __device__ __forceinline__ Place place(int row) const {
    Place place;
    if (is_turned)
#pragma unroll
      for (int j = 0; j < 4; ++j) place.angles[j] = p.table.angles[(int64_t{row} * 4 + j) * kLanes + lane];
    place.offset = is_query ? row * p.stride * 2 : p.table.tokens[row];
    return place;
  }

  // REQUIRES: all lanes of the warp are here.
  __device__ __forceinline__ void store(const Place& place, uint4 low, uint4 high, bool inside) const {
    RopeVector<kHeadDim> x(low, high);
    if (p.q_norm != nullptr) {
      const float squares = x.squares();
      if (weight != nullptr) {
        NormWeights<kHeadDim> weights;
        weights.load(weight, lane);
        x.norm(squares, weights, p.norm_epsilon);
      }
    }
    if (is_turned) x.turn(place.angles);
    if (inside)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<uint4*>(to + place.offset + half * kHalf * 2) = x.rounded(half);
  }
};

}  // namespace rtp_llm::cuda
