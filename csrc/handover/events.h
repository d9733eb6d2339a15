// What the machines are told. Each event is handled at a time that its poster read from the
// monotonic clock; what has run out by then is judged first.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "handover/messages.h"

namespace rtp_llm {

// An endpoint belongs to (worker, epoch) and a direction: the one that this worker sends KV on, or
// the one that a sender reaches this worker by.
enum class Direction : uint8_t { kSend, kReceive };

}  // namespace rtp_llm

namespace rtp_llm::event {

// --- sessions
// A message of a router. Of a Submit the poster adds what the engine knows at that time.
struct FromRouter {
  uint64_t router_epoch = 0;
  message::FromRouter body;
  int64_t queued_tokens = 0;  // Submit: what is queued here before it, and the limit
  int64_t max_queued_tokens = INT64_MAX;
  std::optional<message::Failed> invalid;  // Submit: why the request can never run here
};
// The session is there (again) / was lost: its router expires 10 s later.
struct RouterConnected {
  uint64_t router_epoch = 0;
};
struct RouterLost {
  uint64_t router_epoch = 0;
};
// The worker drains no longer: it takes new work of every router again.
struct DrainingEnded {};
// Of a Reserve the poster adds what the engine knows.
struct FromSender {
  WorkerKey sender;
  message::FromSender body;
  std::optional<std::string> invalid = std::nullopt;  // Reserve: why its sequence could never join here
};
struct FromReceiver {
  WorkerKey receiver;
  message::FromReceiver body;
};
// The peer is lost (silence, refused reconnect, a new epoch): what waits for it goes on without.
struct SenderLost {
  WorkerKey sender;
};
// Lost, or the meeting failed (unreachable, refused for its layout or version).
struct ReceiverLost {
  WorkerKey receiver;
  std::string reason;
};
// The session to the receiver is up and a heartbeat is due.
struct HeartbeatDue {
  WorkerKey receiver;
};

// --- engine
struct Scheduled {
  RequestKey key;
  std::vector<int32_t> blocks;
  int32_t tokens = 0;  // prompt and output so far
  int32_t cached_tokens = 0;
};
struct LayersComputed {
  RequestKey key;
  int32_t first_layer = 0, num_layers = 0, first_token = 0, tokens = 0;
};
struct Prefilled {
  RequestKey key;
  SampledToken first;  // `position` is p0
};
// A token that the worker has sent to its router already; remembered for a replay.
struct Output {
  RequestKey key;
  SampledToken token;
};
// A kAlone or joined sequence is over, its blocks are released.
struct Finished {
  RequestKey key;
  FinishReason finish = FinishReason::kNone;
};
// The engine refused an EnqueueSequence or a JoinSequence: the request can't run here.
struct Rejected {
  message::Failed failed;
};
// Blocks became free: waiting Reserves are tried again.
struct RoomChanged {};

// --- data plane
// A push has ended, one for each PushLayers. REQUIRES: the source blocks are not read any more.
struct PushDone {
  RequestKey key;
  GrantId grant = 0;
  bool ok = true;
  uint64_t bytes = 0;     // payload
  uint64_t checksum = 0;  // of what was sent
};
// A receive has ended, one for each accepted message. REQUIRES: nothing writes any more.
struct ReceiveDone {
  GrantId grant = 0;
  bool ok = true;
  uint64_t bytes = 0;
  uint64_t checksum = 0;  // of what lies in the blocks now
  Seconds verify = 0;     // that putting them there and summing them took
};
// The endpoint broke though its peer may live. Every push posted on it still gets its PushDone.
struct EndpointFailed {
  WorkerKey peer;
  Direction direction = Direction::kSend;
};
// A CloseEndpoint is done: each of its pushes and receives has ended (and its event came before).
struct EndpointClosed {
  WorkerKey peer;
  Direction direction = Direction::kSend;
};

// Nothing happened but time; post at next_deadline().
struct Tick {};

}  // namespace rtp_llm::event

namespace rtp_llm {

using Event = std::variant<event::FromRouter, event::RouterConnected, event::RouterLost, event::DrainingEnded,
                           event::FromSender, event::FromReceiver, event::SenderLost, event::ReceiverLost,
                           event::HeartbeatDue, event::Scheduled, event::LayersComputed, event::Prefilled,
                           event::Output, event::Finished, event::Rejected, event::RoomChanged, event::PushDone,
                           event::ReceiveDone, event::EndpointFailed, event::EndpointClosed, event::Tick>;

}  // namespace rtp_llm
