#include "handover/receiver_attempt.h"

#include <algorithm>

namespace rtp_llm {

std::optional<Refusal> ReceiverGrant::check(const KvMessageHeader& header, uint64_t payload_bytes,
                                            const HandoverConfig& config) const {
  const int64_t end_layer = int64_t{header.first_layer} + header.num_layers;
  const int64_t end = int64_t{header.first_token} + header.tokens;
  const bool in_range = header.kv_group == 0 && header.num_layers > 0 && end_layer <= config.num_layers &&
                        header.tokens > 0 && int64_t{header.first_token} >= prefix_tokens && end <= tokens &&
                        header.first_token % static_cast<uint32_t>(config.block_tokens) == 0;
  if (!in_range) return Refusal::kRange;
  const uint64_t bytes = uint64_t{header.tokens} * header.num_layers * static_cast<uint64_t>(config.token_layer_bytes);
  if (payload_bytes != bytes) return Refusal::kSize;
  return std::nullopt;
}

message::ArrivalTimes ReceiverGrant::arrival() const {
  const Seconds verified = std::min(verify, receiving);
  return {.wire = static_cast<float>(receiving - verified), .verify = static_cast<float>(verified)};
}

}  // namespace rtp_llm
