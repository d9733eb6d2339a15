// KvCache: the bytes of the KV pool, an allocation of its own that peers can map; BlockPool has the ids. Behind the
// pool's blocks lies one that it doesn't know: the scratch block, which padding rows write.
#pragma once

#include <cstdint>

#include "device/device.h"
#include "engine/engine_config.h"
#include "kv/kv_layout.h"

namespace rtp_llm {

class KvCache {
 public:
  // As many blocks as config.num_kv_blocks says or config.kv_pool_bytes holds. Throws InvalidArgument
  // if that is none. REQUIRES: one layout group.
  KvCache(Device& device, KvLayout layout, const EngineConfig& config);

  const KvLayout& layout() const { return layout_; }
  int num_blocks() const { return num_blocks_; }  // the pool's
  int32_t scratch_block() const { return num_blocks_; }
  int64_t block_bytes() const { return block_bytes_; }
  uint8_t* base() const { return static_cast<uint8_t*>(pool_.data()); }
  int64_t bytes() const { return num_blocks_ * block_bytes_; }

 private:
  KvLayout layout_;
  int64_t block_bytes_;
  int num_blocks_;
  Buffer pool_;
};

}  // namespace rtp_llm
