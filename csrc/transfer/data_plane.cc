#include "transfer/data_plane.h"

#include "device/ops.h"
#include "transfer/clock.h"

namespace rtp_llm {

namespace {

constexpr int kStagingSlots = 8;  // both directions together

const KvGroup& only_group(const KvLayout& layout) {
  check(layout.groups.size() == 1, "KV transfer handles one group, the layout has ", layout.groups.size());
  return layout.groups[0];
}

}  // namespace

DataPlane::DataPlane(Device& device, EnginePort& engine, const TransportConfig& config, int usual_tokens, Trace& trace,
                     Hooks hooks)
    : device_(device),
      engine_(engine),
      trace_(trace),
      hooks_(std::move(hooks)),
      group_(only_group(engine.kv_layout())),
      transport_(config, *this) {
  if (device.host_reaches_memory()) return;
  staging_.emplace(device, kv_token_layer_bytes(group_) * engine.layers_per_message() * usual_tokens, kStagingSlots);
}

KvSpan DataPlane::span_of(const action::PushLayers& push) const {
  return {.first_layer = push.header.first_layer,
          .num_layers = push.header.num_layers,
          .first_token = static_cast<int>(push.header.first_token),
          .tokens = static_cast<int>(push.header.tokens),
          .blocks = push.blocks};
}

KvSpan DataPlane::span_of(const Destination& destination) const {
  return {.first_layer = destination.first_layer,
          .num_layers = destination.num_layers,
          .first_token = destination.first_token,
          .tokens = destination.tokens,
          .blocks = destination.blocks};
}

std::vector<Piece> DataPlane::pieces_of(const KvSpan& span) const {
  return kv_pieces(group_, engine_.kv_pool_base(), span);
}

uint64_t DataPlane::checksum(const KvSpan& span) const {
  return kv_checksum(device_.ops(), group_, 0, engine_.kv_pool_base(), engine_.block_pool().num_blocks(), span);
}

void DataPlane::trace(TracePoint point, Seconds time, const RequestKey& key, const KvSpan& span, uint64_t bytes) {
  trace_.add({.time = time,
              .key = key,
              .point = point,
              .first_layer = span.first_layer,
              .num_layers = span.num_layers,
              .first_token = span.first_token,
              .tokens = span.tokens,
              .bytes = bytes});
}

// ---- Out

void DataPlane::push(const action::PushLayers& action) {
  const uint64_t tag = ++last_tag_;
  Push& push = pushes_[tag];
  push.action = action;
  push.bytes = static_cast<uint64_t>(kv_token_layer_bytes(group_)) * action.header.num_layers * action.header.tokens;
  engine_.block_pool().pin(action.blocks);
  if (post(tag, push)) return;
  std::deque<uint64_t>& waiting = waiting_[action.receiver];
  waiting.push_back(tag);
  if (waiting.size() == 1) hooks_.want_endpoint(action.receiver);
}

// The source doesn't change while it is pinned, so it is summed while it travels.
bool DataPlane::post(uint64_t tag, Push& push) {
  const KvSpan span = span_of(push.action);
  const KvMessageHeader& header = push.action.header;
  const Seconds posted_at = monotonic_seconds();
  std::vector<Piece> pieces = pieces_of(span);
  if (staging_) {
    if (!transport_.connected(push.action.receiver)) return false;
    push.staged = staging_->take(push.bytes);
    push.staged.load(pieces);
    pieces = {push.staged.piece()};
  }
  if (!transport_.send(push.action.receiver, header, std::move(pieces), tag)) return false;
  trace(TracePoint::kPosted, posted_at, push.action.key, span, push.bytes);
  push.checksum = checksum(span);
  return true;
}

void DataPlane::on_sent(uint64_t tag, bool sent) {
  const auto found = pushes_.find(tag);
  check(found != pushes_.end(), "push ", tag, " ended and is unknown");
  const Push push = std::move(found->second);
  pushes_.erase(found);
  engine_.block_pool().unpin(push.action.blocks);
  if (sent) {
    ++counts_.messages_sent;
    counts_.payload_bytes_sent += push.bytes;
    trace(TracePoint::kSent, monotonic_seconds(), push.action.key, span_of(push.action), push.bytes);
  } else {
    ++counts_.messages_failed;
  }
  hooks_.tell(event::PushDone{.key = push.action.key,
                              .grant = push.action.header.grant,
                              .ok = sent,
                              .bytes = sent ? push.bytes : 0,
                              .checksum = sent ? push.checksum : 0});
}

// ---- In

std::optional<Acceptance> DataPlane::accept(const WorkerKey& from, const KvMessageHeader& header, uint64_t bytes) {
  const std::variant<Destination, Refusal> answer = hooks_.accept(from, header, bytes);
  if (const Refusal* refusal = std::get_if<Refusal>(&answer)) {
    ++counts_.refused[static_cast<uint8_t>(*refusal)];
    return std::nullopt;
  }
  const uint64_t tag = ++last_tag_;
  Receive& receive = receives_[tag];
  receive = {.destination = std::get<Destination>(answer), .bytes = bytes, .staged = {}};
  engine_.block_pool().pin(receive.destination.blocks);
  const KvSpan span = span_of(receive.destination);
  trace(TracePoint::kAccepted, monotonic_seconds(), receive.destination.key, span, bytes);
  if (!staging_) return Acceptance{pieces_of(span), tag};
  receive.staged = staging_->take(bytes);
  return Acceptance{{receive.staged.piece()}, tag};
}

void DataPlane::on_received(uint64_t tag, bool landed) {
  const auto found = receives_.find(tag);
  check(found != receives_.end(), "receive ", tag, " ended and is unknown");
  const Receive receive = std::move(found->second);
  receives_.erase(found);
  const KvSpan span = span_of(receive.destination);
  const Seconds landed_at = monotonic_seconds();
  if (landed && staging_) receive.staged.store(pieces_of(span));
  const uint64_t sum = landed ? checksum(span) : 0;
  const Seconds verify = monotonic_seconds() - landed_at;
  engine_.block_pool().unpin(receive.destination.blocks);
  if (landed) {
    ++counts_.messages_received;
    counts_.payload_bytes_received += receive.bytes;
    trace(TracePoint::kReceived, monotonic_seconds(), receive.destination.key, span, receive.bytes);
  } else {
    ++counts_.messages_failed;
  }
  hooks_.tell(event::ReceiveDone{.grant = receive.destination.grant,
                                 .ok = landed,
                                 .bytes = landed ? receive.bytes : 0,
                                 .checksum = sum,
                                 .verify = verify});
}

// ---- Endpoints

void DataPlane::connect(const WorkerKey& receiver, const std::string& address, uint64_t nonce) {
  if (transport_.connected(receiver)) return;
  try {
    transport_.connect(receiver, address, nonce);
  } catch (const Error& error) {  // a malformed address, or UCX can't start: as a broken endpoint
    hooks_.warn(concat("no endpoint to ", receiver.str(), ": ", error.what()));
    abandon(receiver);
    hooks_.tell(event::EndpointFailed{.peer = receiver, .direction = Direction::kSend});
    return;
  }
  const auto found = waiting_.find(receiver);
  if (found == waiting_.end()) return;
  const std::deque<uint64_t> tags = std::move(found->second);
  waiting_.erase(found);
  for (uint64_t tag : tags)
    if (!post(tag, pushes_.at(tag))) on_sent(tag, false);
}

void DataPlane::abandon(const WorkerKey& receiver) {
  const auto found = waiting_.find(receiver);
  if (found == waiting_.end()) return;
  const std::deque<uint64_t> tags = std::move(found->second);
  waiting_.erase(found);
  for (uint64_t tag : tags) on_sent(tag, false);
}

void DataPlane::close(const WorkerKey& peer, Direction direction) {
  if (direction == Direction::kSend) abandon(peer);
  if (transport_.close_by_force(direction, peer))
    close_wanted_.emplace(direction, peer);
  else
    hooks_.tell(event::EndpointClosed{.peer = peer, .direction = direction});
}

void DataPlane::on_closed(Direction direction, const WorkerKey& peer, const std::string& reason) {
  if (!close_wanted_.contains({direction, peer})) {
    if (!reason.empty()) {
      hooks_.warn(
          concat("the endpoint ", direction == Direction::kSend ? "to " : "from ", peer.str(), " broke: ", reason));
      hooks_.tell(event::EndpointFailed{.peer = peer, .direction = direction});
    }
    return;
  }
  if (transport_.closing(direction, peer)) return;  // another one of the same name, not gone yet
  close_wanted_.erase({direction, peer});
  hooks_.tell(event::EndpointClosed{.peer = peer, .direction = direction});
}

DataPlaneCounts DataPlane::counts() const {
  DataPlaneCounts counts = counts_;
  counts.transport = transport_.counts();
  for (const auto& [receiver, tags] : waiting_) counts.pushes_waiting += static_cast<int>(tags.size());
  counts.pushes_in_flight = static_cast<int>(pushes_.size());
  counts.receives_in_flight = static_cast<int>(receives_.size());
  return counts;
}

}  // namespace rtp_llm
