#include "handover/sender_attempt.h"

#include <algorithm>
#include <cmath>

#include "handover/deadlines.h"

namespace rtp_llm {

std::optional<Seconds> SenderAttempt::deadline(const HandoverTimes& times) const {
  std::optional<Seconds> next = earlier(repeat_at, close_at);
  if (state == SenderState::kPush) next = earlier(next, push_limit(times));
  return next;
}

std::optional<Seconds> SenderAttempt::push_limit(const HandoverTimes& times) const {
  const std::optional<Seconds> lease = grant->lease_until - times.lease_margin;
  if (grant->pushes_in_flight == 0) return lease;
  return earlier(lease, grant->progress_at + times.push_stall);
}

void SenderAttempt::shrink() {
  spec.reset();
  grant.reset();
  blocks = {};
  computed = {};
}

bool SenderAttempt::is_sent() const {
  return first && grant && grant->pushes_in_flight == 0 &&
         std::all_of(grant->pushed.begin(), grant->pushed.end(), [&](int32_t end) { return end == num_tokens; });
}

std::string SenderAttempt::objection(const message::Granted& granted, const HandoverConfig& config) const {
  const int32_t prefix = granted.prefix_tokens;
  if (prefix < 0 || prefix > num_tokens || (prefix % config.block_tokens != 0 && prefix != num_tokens)) {
    return "prefix_tokens " + std::to_string(prefix) + " of " + std::to_string(num_tokens) + ", in blocks of " +
           std::to_string(config.block_tokens);
  }
  if (!std::isfinite(granted.lease) || granted.lease <= 0) return "lease " + std::to_string(granted.lease);
  return "";
}

void SenderAttempt::begin(const message::Granted& granted, Seconds now) {
  grant.emplace();
  grant->id = granted.grant;
  grant->lease_until = now + granted.lease;
  grant->pushed.assign(computed.size(), granted.prefix_tokens);
}

void SenderAttempt::push(const HandoverConfig& config, Seconds now, Actions& out) {
  if (grant->pushes_in_flight == 0) grant->progress_at = now;
  for (size_t group = 0; group < computed.size(); ++group) {
    const int32_t ready = computed[group];
    const int32_t end = ready == num_tokens ? ready : ready / config.block_tokens * config.block_tokens;
    const int32_t first_layer = static_cast<int32_t>(group) * config.layers_per_message;
    for (int32_t& pushed = grant->pushed[group]; pushed < end;) {
      const int32_t tokens = std::min(end - pushed, config.max_push_tokens);
      KvMessageHeader header;
      header.first_layer = static_cast<uint16_t>(first_layer);
      header.num_layers = static_cast<uint16_t>(std::min(config.layers_per_message, config.num_layers - first_layer));
      header.receiver_epoch = receiver->epoch;
      header.grant = grant->id;
      header.first_token = static_cast<uint32_t>(pushed);
      header.tokens = static_cast<uint32_t>(tokens);
      const auto begin = blocks.begin() + pushed / config.block_tokens;
      const auto last = blocks.begin() + (pushed + tokens - 1) / config.block_tokens;
      out.push_back(action::PushLayers{*receiver, key, header, {begin, last + 1}});
      pushed += tokens;
      ++grant->pushes_in_flight;
      ++grant->messages;
      ++pushes_in_flight;
    }
  }
}

}  // namespace rtp_llm
