// What peers and routers say: the messages of protos/rtp_llm/wire/v1 as plain structs, field for
// field. Who sent one, and to which incarnation, stands beside it (events.h, actions.h).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "handover/sequence_spec.h"
#include "handover/times.h"
#include "handover/types.h"

namespace rtp_llm::message {

using SpecPtr = std::shared_ptr<const SequenceSpec>;

// --- sender to receiver
struct Reserve {
  SpecPtr spec;          // key, request, tokens so far
  GrantId given_up = 0;  // a grant of this k that the sender no longer counts on; 0: none
};
struct Commit {
  RequestKey key;
  GrantId grant = 0;
  SampledToken first;  // at position p0
  uint64_t bytes = 0;  // payload sent into this grant
  uint64_t checksum = 0;
};
struct Abort {
  RequestKey key;
  GrantId grant = 0;  // the newest that the sender heard of; 0: none
};
struct SenderHeartbeat {
  std::vector<GrantId> grants;  // that the sender counts on
};

// --- receiver to sender
struct Granted {
  RequestKey key;
  GrantId grant = 0;
  int32_t prefix_tokens = 0;  // the receiver has these: the sender sends from here
  Seconds lease = 0;
};
struct NoRoom {
  RequestKey key;
  std::string reason;
};
struct PeerCommitted {
  RequestKey key;
  GrantId grant = 0;
};
struct Expired {
  RequestKey key;
  GrantId grant = 0;
};
struct BadChecksum {
  RequestKey key;
  GrantId grant = 0;
  uint64_t expected = 0, found = 0;
};
struct PeerFenced {
  RequestKey key;
};

// --- router to worker
struct Submit {
  SpecPtr spec;                       // key, request, tokens so far
  std::optional<WorkerKey> receiver;  // unset: alone
  std::string receiver_address;       // its peer session server
};
struct Cancel {
  RequestKey key;
};
struct Fence {
  RequestKey key;
};
enum class AttachRole : uint8_t { kSender = 1, kReceiver = 2, kAlone = 3 };
struct AttachEntry {
  RequestKey key;
  int32_t next_position = 0;
  AttachRole role = AttachRole::kAlone;
};
struct Attach {
  std::vector<AttachEntry> entries;
};
struct DrainingAcknowledged {};

// How long messages of an attempt's KV were under way into its receiver's memory, in seconds; what its sender computed
// between them doesn't count. Zero: nothing had to be sent.
struct ArrivalTimes {
  float wire = 0;    // without:
  float verify = 0;  // putting bytes into their places and summing them
};

// --- worker to router
struct Outputs {  // of one k: a replay, or the tokens that a receiver begins with
  RequestKey key;
  std::vector<SampledToken> tokens;
};
struct Busy {
  RequestKey key;
  int64_t queued_tokens = 0, limit = 0;
};
struct Released {
  RequestKey key;
  std::string reason;
};
struct Failed {
  RequestKey key;
  std::string type;  // a class of rtp_llm.errors
  std::string message;
  std::string param;
};
struct Committed {
  RequestKey key;
  ArrivalTimes times;
};
struct Fenced {
  RequestKey key;
};

using FromSender = std::variant<Reserve, Commit, Abort, SenderHeartbeat>;
using FromReceiver = std::variant<Granted, NoRoom, PeerCommitted, Expired, BadChecksum, PeerFenced>;
using FromRouter = std::variant<Submit, Cancel, Fence, Attach, DrainingAcknowledged>;
using ToRouter = std::variant<Outputs, Busy, Released, Failed, Committed, Fenced>;

}  // namespace rtp_llm::message
