#include "transfer/block_grants.h"

#include "device/ops.h"

namespace rtp_llm {
namespace {

std::span<const int32_t> prefix_of(const GrantPool::Room& room) {
  return std::span(room.blocks).first(static_cast<size_t>(room.prefix_blocks));
}

std::span<const int32_t> granted_of(const GrantPool::Room& room) {
  return std::span(room.blocks).subspan(static_cast<size_t>(room.prefix_blocks));
}

}  // namespace

std::optional<GrantPool::Room> BlockGrants::grant(const SequenceSpec& spec) {
  BlockPool& pool = engine_.block_pool();
  const int block_tokens = pool.block_tokens();
  const size_t num_tokens = spec.prompt.size() + spec.output.size();
  const int num_blocks = static_cast<int>((num_tokens + block_tokens - 1) / block_tokens);
  Room room;
  if (engine_.caches_prefixes()) {
    BlockHasher hasher(engine_.salt(spec), block_tokens, !device_.ops().forms_equal());
    hasher.append(spec.prompt, Form::kPrefill);
    hasher.append(spec.output, Form::kDecode);
    room.blocks = pool.match(hasher.hashes(), num_blocks);
    room.prefix_blocks = static_cast<int>(room.blocks.size());
  }
  std::optional<std::vector<int32_t>> fresh = pool.grant(num_blocks - room.prefix_blocks);
  if (!fresh) {
    pool.release(room.blocks);
    return std::nullopt;
  }
  zero(*fresh);
  room.blocks.insert(room.blocks.end(), fresh->begin(), fresh->end());
  return room;
}

// Attention multiplies the lanes behind a sequence's end by zero, and 0 * NaN is NaN.
void BlockGrants::zero(std::span<const int32_t> blocks) {
  const int64_t bytes = engine_.kv_layout().groups.at(0).block_bytes();
  for (int32_t block : blocks) device_.zero(static_cast<uint8_t*>(engine_.kv_pool_base()) + block * bytes, bytes);
}

void BlockGrants::join(const Room& room) { engine_.block_pool().granted_to_referenced(granted_of(room)); }

void BlockGrants::quarantine(const Room& room) {
  engine_.block_pool().release(prefix_of(room));
  engine_.block_pool().quarantine(granted_of(room));
}

void BlockGrants::free_quarantined(const Room& room) { engine_.block_pool().free_quarantined(granted_of(room)); }

}  // namespace rtp_llm
