// KvLayout: where each byte of the KV cache lies. Pure arithmetic; the same on every device.
//
// Order inside a block: [layer][plane K|V][kv_head][token][head_dim], block-major over the pool. So
// a block is one piece over all layers of its group, a run of layers of a block is one piece, a
// head slice is contiguous. Groups differ in layers, planes or lifetime (sliding window, latent,
// state); a plain transformer has one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "device/kv_view.h"
#include "tensor/dtype.h"

namespace rtp_llm {

// Blocks that hold the KV of `tokens` tokens.
template <class Int>
constexpr Int blocks_for(Int tokens, int block_tokens) {
  return (tokens + block_tokens - 1) / block_tokens;
}

struct KvPlane {
  std::string name;   // "K", "V"
  int num_heads = 0;  // kv heads
  int head_dim = 0;   // elements of a vector
  DType dtype = DType::kF32;

  int64_t token_bytes() const { return int64_t{head_dim} * size_of(dtype); }                  // one head, one token
  int64_t bytes(int block_tokens) const { return num_heads * block_tokens * token_bytes(); }  // one layer of a block
};

enum class KvLifetime : uint8_t { kWholeSequence };

struct KvGroup {
  std::vector<int> layers;  // model layer numbers, ascending; a layer belongs to one group
  std::vector<KvPlane> planes;
  int block_tokens = 16;
  KvLifetime lifetime = KvLifetime::kWholeSequence;

  int64_t layer_bytes() const;                  // all planes of one layer of one block
  int64_t block_bytes() const;                  // layers.size() * layer_bytes()
  int64_t plane_offset(int plane) const;        // within a layer
  int64_t layer_offset(int layer_index) const;  // within a block; index into `layers`, not a layer number
};

struct KvLayout {
  std::vector<KvGroup> groups;

  // One group: `num_layers` layers of K and V.
  static KvLayout transformer(int num_layers, int num_kv_heads, int head_dim, DType dtype, int block_tokens);

  // Canonical JSON {groups, planes, heads, head_dim, dtype, block tokens, model digest}, keys
  // sorted, no spaces.
  std::string canonical_json(const std::string& model_digest) const;
  // SHA-256 of canonical_json, lower-case hex.
  std::string fingerprint(const std::string& model_digest) const;
};

// Names what differs between two canonical JSON layouts, for example
// "groups[0].block_tokens: 16 here, 64 there"; the first 20 joined by "; ", empty if nothing does. Throws
// InvalidArgument if one of them is not JSON or beyond the limits of json_paths.h (a peer wrote it).
std::string describe_difference(const std::string& here, const std::string& there);

// REQUIRES: the group has planes K and V of equal shape.
KvView view_of_layer(const KvGroup& group, void* pool_base, int64_t num_blocks, int layer_index);

}  // namespace rtp_llm
