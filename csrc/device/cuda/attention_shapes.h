// What the launches of attention share: shapes, groups of heads, and the kernels' doors.
#pragma once

#include <algorithm>

#include "device/cuda/attention.h"
#include "tensor/check.h"

namespace rtp_llm::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr int kMaxShares = 1024;  // of decode's work
inline constexpr int kMaxAnyDim = 512;

// Head dims that the kernels by tiles are compiled for.
inline bool has_tiles(int head_dim) { return head_dim == 64 || head_dim == 128; }
// Blocks of the fold that positions below max_positions have.
inline int64_t blocks_of(int64_t max_positions) { return (max_positions + 127) / 128; }

// Decode takes the query heads of a KV head in groups of at most 8.
struct HeadGroups {
  HeadGroups(int num_heads, int num_kv_heads)
      : per_kv((num_heads / num_kv_heads + 7) / 8), heads((num_heads / num_kv_heads + per_kv - 1) / per_kv) {}
  int per_kv;
  int heads;  // of a group; the last may have fewer
};

void check_attention(const AttentionProblem& problem);

void prepare_decode(int major);
void prepare_prefill_plain();
void prepare_prefill_wgmma();

void prefill_wgmma(cudaStream_t stream, int num_sms, const AttentionProblem& problem, const PrefillSegments& segments,
                   uint32_t* counters);

}  // namespace rtp_llm::cuda
