// What the machines want done, in this order. None of them can fail from a machine's point of view:
// what comes of it arrives as an event.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "handover/events.h"
#include "handover/messages.h"

namespace rtp_llm::action {

// --- sessions. A message into a broken session is lost; the protocol repeats what it must.
struct ToRouter {
  uint64_t router_epoch = 0;
  message::ToRouter body;
};
struct ToSender {
  WorkerKey sender;
  message::FromReceiver body;
};
struct ToReceiver {
  WorkerKey receiver;
  message::FromSender body;
};
// Open the session to a receiver, and the endpoint beside it, unless there is one. If that fails:
// event::ReceiverLost.
struct Meet {
  WorkerKey receiver;
  std::string address;
};

// --- engine
struct EnqueueSequence {  // Engine::add
  message::SpecPtr spec;
  Role role = Role::kAlone;
};
struct JoinSequence {  // Engine::join; spec->output ends with the sender's token; blocks: one reference each
  message::SpecPtr spec;
  std::vector<int32_t> blocks;
  int32_t prefix_tokens = 0;  // the first ones were in this worker's cache: they were not sent
};
struct CancelSequence {  // Engine::cancel
  RequestKey key;
};
struct ReleaseBlocks {  // Engine::release of a kSender sequence: no push of it is in flight
  RequestKey key;
};

// --- data plane
// Send tokens [first_token, first_token + tokens) of layers [first_layer, first_layer + num_layers).
struct PushLayers {
  WorkerKey receiver;
  RequestKey key;
  KvMessageHeader header;       // complete
  std::vector<int32_t> blocks;  // local ones that hold the tokens; the first token begins the first block
};
// By force; then progress until each callback has fired; then event::EndpointClosed. The next push
// or message makes a new endpoint.
struct CloseEndpoint {
  WorkerKey peer;
  Direction direction = Direction::kSend;
};

}  // namespace rtp_llm::action

namespace rtp_llm {

using Action = std::variant<action::ToRouter, action::ToSender, action::ToReceiver, action::Meet,
                            action::EnqueueSequence, action::JoinSequence, action::CancelSequence,
                            action::ReleaseBlocks, action::PushLayers, action::CloseEndpoint>;
using Actions = std::vector<Action>;

}  // namespace rtp_llm
