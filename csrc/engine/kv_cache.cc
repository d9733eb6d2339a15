#include "engine/kv_cache.h"

#include <limits>

namespace rtp_llm {

namespace {

int choose_num_blocks(const EngineConfig& config, int64_t block_bytes) {
  if (config.num_kv_blocks > 0) return config.num_kv_blocks;
  const int64_t blocks = config.kv_pool_bytes / block_bytes;
  check(blocks >= 1 && blocks <= std::numeric_limits<int32_t>::max(), "kv_pool_bytes ", config.kv_pool_bytes, " holds ",
        blocks, " KV blocks of ", block_bytes, " bytes (", config.block_tokens, " tokens), at least 1 and at ",
        "most 2^31 - 1 are needed");
  return static_cast<int>(blocks);
}

int64_t block_bytes_of(const KvLayout& layout) {
  check(layout.groups.size() == 1, "the engine runs one KV group, the layout has ", layout.groups.size());
  return layout.groups[0].block_bytes();
}

}  // namespace

KvCache::KvCache(Device& device, KvLayout layout, const EngineConfig& config)
    : layout_(std::move(layout)),
      block_bytes_(block_bytes_of(layout_)),
      num_blocks_(choose_num_blocks(config, block_bytes_)),
      pool_(device.allocate_shareable((num_blocks_ + int64_t{1}) * block_bytes_, "kv_pool")) {}

}  // namespace rtp_llm
