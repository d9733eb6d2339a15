// RopeTable: where the rows of a step stand, made once a step and read by all of its layers: each row's angles, and its
// place in a layer of the KV pool.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "device/kv_view.h"

namespace rtp_llm::cuda {

struct RopeTable {
  // [rows][head_dim / 2 angles] in the order that RopeVector reads: word j * lanes + i has the cosines and sines of
  // angles 8i + 2j and 8i + 2j + 1, lanes = head_dim / 16.
  const float4* angles = nullptr;   // null: there is no table
  const int64_t* tokens = nullptr;  // [rows]: bytes from a layer's base to the row's token, of plane and head 0
};

struct RopeTableProblem {
  const float* inv_freq = nullptr;  // [kv.head_dim / 2]
  KvView kv;                        // any layer's
  int num_rows = 0;
  const int32_t* row_slot = nullptr;      // [num_rows]
  const int32_t* row_offset = nullptr;    // [num_rows]
  const int32_t* seq_len = nullptr;       // [slots]
  const int32_t* block_tables = nullptr;  // [slots, block_table_stride]
  int64_t block_table_stride = 0;
};

int64_t rope_table_bytes(int64_t rows, int head_dim);
// Where the table of so many rows lies in `memory`.
RopeTable rope_table_in(void* memory, int64_t rows);
// REQUIRES: head_dim a multiple of 16, `memory` of rope_table_bytes(), on 16 bytes.
void make_rope_table(cudaStream_t stream, const RopeTableProblem& problem, void* memory);

}  // namespace rtp_llm::cuda
