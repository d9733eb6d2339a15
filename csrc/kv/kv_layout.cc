#include "kv/kv_layout.h"

#include <map>
#include <numeric>
#include <string_view>

#include "kv/json_paths.h"
#include "kv/sha256.h"
#include "tensor/check.h"

namespace rtp_llm {
namespace {

std::string_view name_of(KvLifetime lifetime) {
  switch (lifetime) {
    case KvLifetime::kWholeSequence: return "whole_sequence";
  }
  return "?";
}

// Of a text that names what differs.
constexpr int kMaxDifferences = 20;
constexpr size_t kMaxValueBytes = 100;

template <class Items, class ToJson>
std::string json_list(const Items& items, ToJson to_json) {
  std::string list = "[";
  const char* comma = "";
  for (const auto& item : items) {
    list += comma + to_json(item);
    comma = ",";
  }
  return list + "]";
}

std::string plane_json(const KvPlane& plane) {
  return concat("{\"dtype\":", json_quoted(rtp_llm::name_of(plane.dtype)), ",\"head_dim\":", plane.head_dim,
                ",\"name\":", json_quoted(plane.name), ",\"num_heads\":", plane.num_heads, "}");
}

std::string group_json(const KvGroup& group) {
  return concat("{\"block_tokens\":", group.block_tokens,
                ",\"layers\":", json_list(group.layers, [](int layer) { return std::to_string(layer); }),
                ",\"lifetime\":", json_quoted(name_of(group.lifetime)),
                ",\"planes\":", json_list(group.planes, plane_json), "}");
}

}  // namespace

int64_t KvGroup::layer_bytes() const { return plane_offset(static_cast<int>(planes.size())); }

int64_t KvGroup::block_bytes() const { return static_cast<int64_t>(layers.size()) * layer_bytes(); }

int64_t KvGroup::plane_offset(int plane) const {
  check(plane >= 0 && plane <= static_cast<int>(planes.size()), "plane ", plane, " out of range, group has ",
        planes.size());
  int64_t offset = 0;
  for (int i = 0; i < plane; ++i) offset += planes[i].bytes(block_tokens);
  return offset;
}

int64_t KvGroup::layer_offset(int layer_index) const {
  check(layer_index >= 0 && layer_index <= static_cast<int>(layers.size()), "layer index ", layer_index,
        " out of range, group has ", layers.size(), " layers");
  return layer_index * layer_bytes();
}

KvLayout KvLayout::transformer(int num_layers, int num_kv_heads, int head_dim, DType dtype, int block_tokens) {
  check(num_layers > 0, "num_layers must be positive, got ", num_layers);
  check(num_kv_heads > 0, "num_kv_heads must be positive, got ", num_kv_heads);
  check(head_dim > 0, "head_dim must be positive, got ", head_dim);
  check(block_tokens > 0, "block_tokens must be positive, got ", block_tokens);
  KvGroup group{.layers = std::vector<int>(num_layers), .planes = {}, .block_tokens = block_tokens};
  std::iota(group.layers.begin(), group.layers.end(), 0);
  for (const char* name : {"K", "V"}) group.planes.push_back({name, num_kv_heads, head_dim, dtype});
  return {.groups = {std::move(group)}};
}

std::string KvLayout::canonical_json(const std::string& model_digest) const {
  return concat("{\"groups\":", json_list(groups, group_json), ",\"model_digest\":", json_quoted(model_digest), "}");
}

std::string KvLayout::fingerprint(const std::string& model_digest) const {
  return sha256_hex(canonical_json(model_digest));
}

std::string describe_difference(const std::string& here, const std::string& there) {
  const auto ours = json_paths(here);
  auto read_theirs = json_paths(there);
  std::map<std::string, std::string> theirs(read_theirs.begin(), read_theirs.end());
  std::string text;
  int count = 0;
  const auto shortened = [](const std::string& value) {
    return value.size() <= kMaxValueBytes ? value : value.substr(0, kMaxValueBytes) + "…";
  };
  const auto differ = [&](const std::string& path, const std::string& a, const std::string& b) {
    if (++count > kMaxDifferences) return;
    text += concat(text.empty() ? "" : "; ", path, ": ", shortened(a), " here, ", shortened(b), " there");
  };
  for (const auto& [path, value] : ours) {
    const auto found = theirs.find(path);
    if (found == theirs.end()) {
      differ(path, value, "absent");
    } else {
      if (found->second != value) differ(path, value, found->second);
      theirs.erase(found);
    }
  }
  for (const auto& [path, value] : theirs) differ(path, "absent", value);
  if (count > kMaxDifferences) text += concat("; and ", count - kMaxDifferences, " more");
  return text;
}

KvView view_of_layer(const KvGroup& group, void* pool_base, int64_t num_blocks, int layer_index) {
  check(group.planes.size() == 2, "a view needs planes K and V, group has ", group.planes.size());
  const KvPlane &k = group.planes[0], &v = group.planes[1];
  check(k.num_heads == v.num_heads && k.head_dim == v.head_dim && k.dtype == v.dtype,
        "a view needs planes of equal shape, got ", k.num_heads, "x", k.head_dim, " and ", v.num_heads, "x",
        v.head_dim);
  check(layer_index < static_cast<int>(group.layers.size()), "layer index ", layer_index, " out of range, group has ",
        group.layers.size(), " layers");
  return {.base = static_cast<uint8_t*>(pool_base) + group.layer_offset(layer_index),
          .block_stride = group.block_bytes(),
          .plane_offset = {group.plane_offset(0), group.plane_offset(1)},
          .head_stride = group.block_tokens * k.token_bytes(),
          .token_stride = k.token_bytes(),
          .num_heads = k.num_heads,
          .head_dim = k.head_dim,
          .block_tokens = group.block_tokens,
          .num_blocks = num_blocks,
          .dtype = k.dtype};
}

}  // namespace rtp_llm
