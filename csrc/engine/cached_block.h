// The bytes of one block of the prefix cache, by its hash: read and replaced from outside the step loop. Tests prove
// with it that answers depend on every block, whichever path brought it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "kv/block_hash.h"

namespace rtp_llm {

// Both hold a reference while they copy, so the block is neither evicted nor granted meanwhile. Any thread.

// kv_layout().groups[0].block_bytes() bytes; nullopt if the cache doesn't know the hash.
std::optional<std::vector<uint8_t>> read_cached_block(Engine& engine, const BlockHash& hash);

// False if the cache doesn't know the hash. REQUIRES: no running step reads the block. Throws InvalidArgument if
// `bytes` is not a block long.
bool write_cached_block(Engine& engine, const BlockHash& hash, std::span<const uint8_t> bytes);

}  // namespace rtp_llm
