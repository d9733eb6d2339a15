// Receiver: the worker's half of a handover as R, for all keys: it grants blocks, lets messages into
// live grants only, judges whether an attempt is committed, and remembers the tokens of what it runs.
//
// Pure: events in, actions out, time as an argument; no I/O, no thread, no clock. One thread owns
// it. docs/protocol.md has the table, a row per test in tests/cpp/handover/receiver_test.cc.
//
//   (NONE) -> QUEUED -> GRANTED -> VERIFY -> RUNNING -> OVER       k
//                          LIVE -----------> (the sequence's)      its grant
//                            \-> QUARANTINE -> (free)
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "handover/actions.h"
#include "handover/attempt_ledger.h"
#include "handover/events.h"
#include "handover/grant_pool.h"
#include "handover/router_sessions.h"

namespace rtp_llm {

enum class ReceiverState : uint8_t { kQueued, kGranted, kVerify, kRunning, kOver };

// Zero at rest, all but `remembered`.
struct ReceiverCounts {
  int64_t queued = 0, granted = 0, verifying = 0, running = 0;
  int64_t remembered = 0;  // in OVER
  int64_t live_grants = 0, quarantined_grants = 0;
  int64_t granted_blocks = 0, quarantined_blocks = 0;
  int64_t receives_in_flight = 0;  // accepted messages without ReceiveDone
};

// Where an accepted message goes: `tokens` tokens from position `first_token` on, layers
// [first_layer, first_layer + num_layers); the first token begins the first block.
struct Destination {
  GrantId grant = 0;
  RequestKey key;
  int32_t first_layer = 0, num_layers = 0, first_token = 0, tokens = 0;
  std::vector<int32_t> blocks;
};

enum class Refusal : uint8_t {
  kVersion,      // of the header
  kEpoch,        // meant for an earlier incarnation of this worker
  kNoSuchGrant,  // unknown, quarantined or used: a late message
  kSender,       // the grant is another worker's
  kRange,        // layers or tokens outside of the grant, or not at a block border
  kSize,         // payload and header disagree
};

struct ReceiverTable;

class Receiver {
 public:
  // REQUIRES: pool, ledger and routers outlive the receiver.
  Receiver(WorkerKey self, const HandoverConfig& config, GrantPool& pool, AttemptLedger& ledger,
           RouterSessions& routers);
  ~Receiver();

  // What ran out by `now`: leases, waiting Reserves, stalled VERIFYs, quarantines, memory. Call
  // before every event.
  void expire(Seconds now, Actions& out);
  std::optional<Seconds> next_deadline() const;

  // The data path. A Destination counts as a receive in flight until its ReceiveDone. REQUIRES:
  // expire(now) came before; `sender` is the endpoint's, from its nonce.
  std::variant<Destination, Refusal> accept(const WorkerKey& sender, const KvMessageHeader& header,
                                            uint64_t payload_bytes, Seconds now);

  void on(const event::FromSender& event, Seconds now, Actions& out);
  void on(const event::SenderLost& event, Seconds now, Actions& out);
  // REQUIRES: knows(entry.key).
  void attach(const message::AttachEntry& entry, Actions& out) const;
  void on(const event::Output& event);
  void on(const event::Finished& event, Seconds now, Actions& out);
  void on(const event::Rejected& event, Seconds now, Actions& out);
  void on(const event::RoomChanged& event, Seconds now, Actions& out);
  void on(const event::ReceiveDone& event, Seconds now, Actions& out);
  void on(const event::EndpointClosed& event);

  void cancel(const RequestKey& key, Seconds now, Actions& out);
  // The router asks for a judgement: Committed or Fenced.
  void fence(const RequestKey& key, Seconds now, Actions& out);
  void higher_attempt(const RequestKey& key, Seconds now, Actions& out);  // ends all attempts below key's
  void router_expired(uint64_t router_epoch, Seconds now, Actions& out);

  bool knows(const RequestKey& key) const;
  std::optional<ReceiverState> state(const RequestKey& key) const;
  bool has_queue() const;         // Reserves may be waiting for room: RoomChanged is worth an event
  ReceiverCounts counts() const;  // walks all attempts

 private:
  std::unique_ptr<ReceiverTable> table_;
};

}  // namespace rtp_llm
