// PagedAttention: causal attention over the paged KV pool, as the CUDA backend computes it.
//
// Two forms, four kernels, one fold (attention_fold.cuh): a row's bits are the same in each of them, for every batch,
// chunking, block size and order of rows.
//
//   decode    each row by itself; the work of all rows is one list, cut into a fixed number of shares
//   prefill   tiles of 128 rows of one sequence and head, by wgmma (sm_90a)
//             tiles of 64 rows, by mma.sync (every other architecture)
//   any dim   both forms where head_dim is neither 64 nor 128; slow
//
// What is read on the device (positions, block tables, segments) must have been written before the forward began and
// stay as it is until its end: kernels read it before they wait for their predecessor.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "device/kv_view.h"
#include "device/slots.h"

namespace rtp_llm::cuda {

// What decode does to q, k and v of its rows first, if they come as their product gave them: as qkv_rope_store does,
// with the same bits. q is then the first of num_heads + 2 kv.num_heads vectors of a row, k and v behind it.
struct QkvRope {
  const float* inv_freq = nullptr;  // [head_dim / 2]; null: nothing is to be done, the step's k and v are in the pool
  const float* q_norm = nullptr;    // [head_dim] or null; both or neither
  const float* k_norm = nullptr;
  float norm_epsilon = 1e-6f;
};

// What both forms read. Row i of the step stands in q and out at row i.
struct AttentionProblem {
  const __nv_bfloat16* q = nullptr;  // [num_rows, num_heads, head_dim], rows q_stride elements apart
  int64_t q_stride = 0;
  __nv_bfloat16* out = nullptr;  // [num_rows, num_heads * head_dim], rows out_stride elements apart
  int64_t out_stride = 0;
  int num_rows = 0;
  int num_heads = 0;
  float scale = 1.0f;
  KvView kv;                              // bf16
  const int32_t* seq_len = nullptr;       // [slots]
  const int32_t* block_tables = nullptr;  // [slots, block_table_stride]
  int64_t block_table_stride = 0;
  QkvRope rope;  // decode of one row a sequence, where tiles(head_dim)
};

// Rows [first_row, first_row + rows) of the step, each a query of its own at position seq_len[slot] + offset.
struct DecodeRows {
  int first_row = 0;
  int rows = 0;
  const int32_t* row_slot = nullptr;    // [num_rows]
  const int32_t* row_offset = nullptr;  // [num_rows]
};

struct PrefillSegments {
  const Segment* segments = nullptr;  // device memory
  const int32_t* count = nullptr;     // device memory: how many of them there are
  int max_count = 0;                  // no more than these; shapes the launch
  DecodeRows rows;                    // a range that has all their rows; other rows in it may be computed too
};

// How decode cuts its work; results don't depend on it. Zeros: chosen by the batch.
struct DecodeSchedule {
  int shares = 0;             // CTAs
  int slots = 0;              // of a CTA's ring: 64 positions of one plane each
  int snap = -1;              // a cut moves to the end of a row's head group if that is within snap/16 of a share
  bool plain_copies = false;  // without the copy engine, as before sm_90
};

class PagedAttention {
 public:
  // Prepares the kernels of the current GPU. `counters`: device memory of counter_bytes(), zero now; every launch
  // leaves it zero. Launches of one PagedAttention must not overlap.
  PagedAttention(int major, int num_sms, uint32_t* counters);

  static int64_t counter_bytes();
  // Of decode's workspace, for positions below max_positions.
  int64_t workspace_bytes(int num_heads, int num_kv_heads, int head_dim, int64_t max_positions) const;

  // Throws InvalidArgument for shapes that no kernel computes.
  void decode(cudaStream_t stream, const AttentionProblem& problem, const DecodeRows& rows, void* workspace,
              int64_t workspace_bytes, int64_t max_positions, const DecodeSchedule& schedule = {}) const;
  void prefill(cudaStream_t stream, const AttentionProblem& problem, const PrefillSegments& segments) const;

  // Whether decode of so many rows does QkvRope's work faster than qkv_rope_store before it: it is done once a pair of
  // row and head group, while the pair's KV waits in the ring, so only where a CTA has no more than one.
  bool decode_ropes(int rows, int num_heads, int num_kv_heads) const;

  // What prefill and decode use elsewhere, or for other head dims: for tests.
  void prefill_plain(cudaStream_t stream, const AttentionProblem& problem, const PrefillSegments& segments) const;
  void any_dim(cudaStream_t stream, const AttentionProblem& problem, const DecodeRows& rows) const;

 private:
  int major_;
  int num_sms_;
  uint32_t* counters_;
};

}  // namespace rtp_llm::cuda
