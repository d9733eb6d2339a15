// Where the bytes of a KV message lie in the pool, and their checksum.
//
// A message carries tokens [first_token, first_token + tokens) of layers [first_layer, first_layer + num_layers), the
// first token beginning the first of `blocks`. Its bytes, in wire order, block by block: of a whole block the run of
// layers (one contiguous piece, [layer][plane][head][token][dim]); of a last block that is not full each
// (layer, plane, head)'s tokens. So a message holds exactly its tokens' bytes, and sender and receiver of equal
// layouts cut the same pieces.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device/ops.h"
#include "kv/kv_layout.h"
#include "transfer/transport.h"

namespace rtp_llm {

struct KvSpan {
  int first_layer = 0;  // index within the group
  int num_layers = 0;
  int first_token = 0;  // position within the sequence, at a block border
  int tokens = 0;
  std::span<const int32_t> blocks;
};

// Bytes of one token of one layer: all planes and heads.
int64_t kv_token_layer_bytes(const KvGroup& group);

// REQUIRES: the span lies within the group and the blocks within the pool.
std::vector<Piece> kv_pieces(const KvGroup& group, void* pool_base, const KvSpan& span);

// The checksum (device/checksum.h) over exactly these pieces.
uint64_t kv_checksum(const Ops& ops, const KvGroup& group, int group_index, void* pool_base, int64_t num_blocks,
                     const KvSpan& span);

}  // namespace rtp_llm
