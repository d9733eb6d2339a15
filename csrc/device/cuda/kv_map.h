// KvMap: a layer of the KV pool as the copy engine addresses it.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "device/kv_view.h"

namespace rtp_llm::cuda {

// Positions that one box holds: the largest of 16, 32 and 64 that divides a block.
inline int box_positions(int block_tokens) { return block_tokens % 64 == 0 ? 64 : block_tokens % 32 == 0 ? 32 : 16; }

// Dimensions (dim, token, head, plane, block); a box is 64 dims of `positions` tokens, rows of 128 bytes in the
// 128-byte swizzle: 16-byte chunk c of row r lies at chunk c ^ (r % 8).
// REQUIRES: bf16, head_dim a multiple of 64, strides multiples of 16 bytes.
CUtensorMap kv_map(const KvView& kv, int positions);

}  // namespace rtp_llm::cuda
