#include "transfer/kv_pieces.h"

#include <algorithm>

namespace rtp_llm {

int64_t kv_token_layer_bytes(const KvGroup& group) {
  int64_t bytes = 0;
  for (const KvPlane& plane : group.planes) bytes += plane.num_heads * plane.token_bytes();
  return bytes;
}

namespace {

// The tokens [0, tokens) of a block, each (layer, plane, head) apart.
void append_part(const KvGroup& group, uint8_t* block, int first_layer, int num_layers, int tokens,
                 std::vector<Piece>& pieces) {
  for (int layer = first_layer; layer < first_layer + num_layers; ++layer)
    for (int plane = 0; plane < static_cast<int>(group.planes.size()); ++plane) {
      const KvPlane& shape = group.planes[plane];
      uint8_t* heads = block + group.layer_offset(layer) + group.plane_offset(plane);
      for (int head = 0; head < shape.num_heads; ++head)
        pieces.push_back({heads + head * group.block_tokens * shape.token_bytes(),
                          static_cast<uint64_t>(tokens * shape.token_bytes())});
    }
}

}  // namespace

std::vector<Piece> kv_pieces(const KvGroup& group, void* pool_base, const KvSpan& span) {
  std::vector<Piece> pieces;
  const int64_t run_bytes = span.num_layers * group.layer_bytes();
  int left = span.tokens;
  for (int32_t block : span.blocks) {
    if (left <= 0) break;
    uint8_t* base = static_cast<uint8_t*>(pool_base) + block * group.block_bytes();
    if (left >= group.block_tokens)
      pieces.push_back({base + group.layer_offset(span.first_layer), static_cast<uint64_t>(run_bytes)});
    else
      append_part(group, base, span.first_layer, span.num_layers, left, pieces);
    left -= group.block_tokens;
  }
  check(left <= 0, "a KV span of ", span.tokens, " tokens has blocks for ", span.tokens - left, " only");
  return pieces;
}

uint64_t kv_checksum(const Ops& ops, const KvGroup& group, int group_index, void* pool_base, int64_t num_blocks,
                     const KvSpan& span) {
  uint64_t sum = 0;
  for (int layer = span.first_layer; layer < span.first_layer + span.num_layers; ++layer) {
    const KvView view = view_of_layer(group, pool_base, num_blocks, layer);
    int done = 0;
    for (int32_t block : span.blocks) {
      if (done >= span.tokens) break;
      const int tokens = std::min(group.block_tokens, span.tokens - done);
      sum += ops.checksum({.kv = view,
                           .group = group_index,
                           .layer = layer,
                           .block = block,
                           .first_position = span.first_token + done,
                           .first_token = 0,
                           .tokens = tokens});
      done += tokens;
    }
  }
  return sum;
}

}  // namespace rtp_llm
