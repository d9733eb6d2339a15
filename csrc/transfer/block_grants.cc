#include "transfer/block_grants.h"

#include <algorithm>

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
  BlockHasher hasher(engine_.salt(spec), block_tokens, !device_.ops().forms_equal());
  if (engine_.caches_prefixes()) {
    hasher.append(spec.prompt, Form::kPrefill);
    hasher.append(spec.output, Form::kDecode);
  }
  std::optional<GrantedBlocks> granted = pool.grant(hasher.hashes(), num_blocks, promised_);
  if (!granted) return std::nullopt;
  Room room{
      .blocks = std::move(granted->blocks), .prefix_blocks = granted->num_hits, .growth = growth_of(spec, num_blocks)};
  zero(granted_of(room));
  promised_.blocks += room.growth;
  ++promised_.sequences;
  return room;
}

int BlockGrants::growth_of(const SequenceSpec& spec, int num_blocks) const {
  const int block_tokens = engine_.block_pool().block_tokens();
  const int64_t stored =
      static_cast<int64_t>(spec.prompt.size()) + spec.sampling.max_tokens - 1;  // never the last token's KV
  const int64_t most = (stored + block_tokens - 1) / block_tokens;
  return static_cast<int>(std::clamp<int64_t>(most - num_blocks, 0, BlockDemand::kMaxGrowth));
}

void BlockGrants::ended(const Room& room) {
  promised_.blocks -= room.growth;
  --promised_.sequences;
}

// Attention multiplies the lanes behind a sequence's end by zero, and 0 * NaN is NaN.
void BlockGrants::zero(std::span<const int32_t> blocks) {
  const int64_t bytes = engine_.kv_layout().groups.at(0).block_bytes();
  for (int32_t block : blocks) device_.zero(static_cast<uint8_t*>(engine_.kv_pool_base()) + block * bytes, bytes);
}

// What is promised sinks first: the pool's listeners may ask again at once.
void BlockGrants::join(const Room& room) {
  ended(room);
  engine_.block_pool().granted_to_referenced(granted_of(room));
}

void BlockGrants::quarantine(const Room& room) {
  ended(room);
  engine_.block_pool().release(prefix_of(room));
  engine_.block_pool().quarantine(granted_of(room));
}

void BlockGrants::free_quarantined(const Room& room) { engine_.block_pool().free_quarantined(granted_of(room)); }

}  // namespace rtp_llm
