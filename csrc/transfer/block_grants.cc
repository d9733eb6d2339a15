#include "transfer/block_grants.h"

#include <algorithm>

#include "device/ops.h"

namespace rtp_llm {
namespace {

std::span<const int32_t> prefix_of(const GrantPool::Reservation& reservation) {
  return std::span(reservation.blocks).first(static_cast<size_t>(reservation.prefix_blocks));
}

std::span<const int32_t> granted_of(const GrantPool::Reservation& reservation) {
  return std::span(reservation.blocks).subspan(static_cast<size_t>(reservation.prefix_blocks));
}

}  // namespace

GrantPool::Want BlockGrants::want(std::shared_ptr<const SequenceSpec> spec) const {
  const int block_tokens = engine_.block_pool().block_tokens();
  const auto prompt = static_cast<int64_t>(spec->prompt.size()), output = static_cast<int64_t>(spec->output.size());
  const int64_t num_blocks = blocks_for(prompt + output, block_tokens);
  // The last token's KV is never stored.
  const int64_t most = blocks_for(prompt + spec->sampling.max_tokens - 1, block_tokens);
  BlockHasher hasher(engine_.salt(*spec), block_tokens, !device_.ops().forms_equal());
  if (engine_.caches_prefixes()) {
    hasher.append(spec->prompt, Form::kPrefill);
    hasher.append(spec->output, Form::kDecode);
  }
  return {.spec = std::move(spec),
          .num_blocks = static_cast<int32_t>(num_blocks),
          .growth = static_cast<int32_t>(std::clamp<int64_t>(most - num_blocks, 0, BlockDemand::kMaxGrowth)),
          .hashes = hasher.hashes()};
}

std::optional<GrantPool::Reservation> BlockGrants::grant(const Want& want) {
  const uint64_t router_epoch = want.spec->key.router_epoch;
  if (!engine_.slot_pool().grant(router_epoch)) return std::nullopt;
  std::optional<GrantedBlocks> granted = engine_.block_pool().grant(want.hashes, want.num_blocks, promised_);
  if (!granted) {
    engine_.slot_pool().give_back(router_epoch);
    return std::nullopt;
  }
  Reservation reservation{.blocks = std::move(granted->blocks),
                          .prefix_blocks = granted->num_hits,
                          .growth = want.growth,
                          .router_epoch = router_epoch};
  zero(granted_of(reservation));
  promised_.blocks += reservation.growth;
  ++promised_.sequences;
  return reservation;
}

void BlockGrants::ended(const Reservation& reservation) {
  promised_.blocks -= reservation.growth;
  --promised_.sequences;
}

// Attention multiplies the lanes behind a sequence's end by zero, and 0 * NaN is NaN.
void BlockGrants::zero(std::span<const int32_t> blocks) {
  const int64_t bytes = engine_.kv_layout().groups.at(0).block_bytes();
  for (int32_t block : blocks) device_.zero(static_cast<uint8_t*>(engine_.kv_pool_base()) + block * bytes, bytes);
}

// What is promised sinks first: the pool's listeners may ask again at once.
void BlockGrants::join(const Reservation& reservation) {
  ended(reservation);
  engine_.block_pool().granted_to_referenced(granted_of(reservation));
}

void BlockGrants::quarantine(const Reservation& reservation) {
  ended(reservation);
  engine_.slot_pool().give_back(reservation.router_epoch);
  engine_.block_pool().release(prefix_of(reservation));
  engine_.block_pool().quarantine(granted_of(reservation));
}

void BlockGrants::free_quarantined(const Reservation& reservation) {
  engine_.block_pool().free_quarantined(granted_of(reservation));
}

}  // namespace rtp_llm
