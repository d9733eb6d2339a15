// qkv_rope_store: what happens to q, k and v between their product and attention, in one kernel.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "device/cuda/rope_table.h"
#include "device/kv_view.h"

namespace rtp_llm::cuda {

struct RopeStoreProblem {
  __nv_bfloat16* qkv = nullptr;  // [num_rows, (num_heads + 2 kv.num_heads) * head_dim], rows `stride` elements apart
  int64_t stride = 0;
  int num_rows = 0;
  int num_heads = 0;
  const float* q_norm = nullptr;  // [head_dim] or null; both or neither
  const float* k_norm = nullptr;
  float norm_epsilon = 1e-6f;
  const float* inv_freq = nullptr;        // [rotary_half]
  int rotary_half = 0;                    // at most head_dim / 2; dims behind 2 rotary_half aren't rotated
  KvView kv{};                            // bf16
  const int32_t* row_slot = nullptr;      // [num_rows]
  const int32_t* row_offset = nullptr;    // [num_rows]
  const int32_t* seq_len = nullptr;       // [slots]
  const int32_t* block_tables = nullptr;  // [slots, block_table_stride]
  int64_t block_table_stride = 0;
  RopeTable table{};  // of these rows; or none
};

// q and k of each row: rms norm over head_dim (if there are weights), then the rotation by f32(position * inv_freq),
// rotate_half form; in f32, rounded once. q stays where it was, k and v go into the pool (k in qkv stays as it was).
// Throws InvalidArgument for shapes that no kernel computes.
// With a table one kernel for many rows, where heads have 64 or 128 dims, all of them rotated, and rows are aligned.
void qkv_rope_store(cudaStream_t stream, const RopeStoreProblem& problem);

// Whether the problem has a table, and shapes that kernels which read it compute.
bool ropes_by_table(const RopeStoreProblem& problem);

}  // namespace rtp_llm::cuda
