// Sender: the worker's half of a handover as S, and sequences that it runs alone, for all keys.
//
// Pure: events in, actions out, time as an argument; no I/O, no thread, no clock. One thread owns
// it. docs/protocol.md has the table, a row per test in tests/cpp/handover/sender_test.cc.
//
//   QUEUED -> COMPUTE -> PUSH -> COMMIT -> FLUSH -> GONE        with a receiver
//                 ^______AWAIT_____|                            a grant went wrong, try another
//   LOCAL ---------------------------> GONE                     alone
//
// It never holds a block: the engine does, until ReleaseBlocks, which comes only after the last push
// of the sequence has ended.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "handover/actions.h"
#include "handover/attempt_ledger.h"
#include "handover/events.h"
#include "handover/router_sessions.h"

namespace rtp_llm {

// A Submit that hands nothing over: without a receiver, to this worker itself, or of an answer that must end with its
// first token.
bool runs_alone(const message::Submit& submit, const WorkerKey& self);

enum class SenderState : uint8_t { kQueued, kCompute, kPush, kAwait, kCommit, kLocal, kFlush, kGone };

// Zero at rest, all but `remembered`.
struct SenderCounts {
  int64_t queued = 0, computing = 0, pushing = 0, awaiting = 0, committing = 0, local = 0, flushing = 0;
  int64_t remembered = 0;        // in GONE
  int64_t pushes_in_flight = 0;  // PushLayers without PushDone
  int64_t source_blocks = 0;     // blocks of sequences that are not released
};

struct SenderTable;

class Sender {
 public:
  // REQUIRES: ledger and routers outlive the sender.
  Sender(WorkerKey self, const HandoverConfig& config, AttemptLedger& ledger, RouterSessions& routers);
  ~Sender();

  // What ran out by `now`: repeats, leases, forced closes, memory. Call before every event.
  void expire(Seconds now, Actions& out);
  std::optional<Seconds> next_deadline() const;

  void on(const event::FromRouter& event, const message::Submit& body, Seconds now, Actions& out);
  // REQUIRES: knows(entry.key).
  void attach(const message::AttachEntry& entry, Actions& out) const;
  void on(const event::FromReceiver& event, Seconds now, Actions& out);
  void on(const event::ReceiverLost& event, Seconds now, Actions& out);
  void on(const event::HeartbeatDue& event, Seconds now, Actions& out);
  void on(const event::Scheduled& event, Seconds now, Actions& out);
  void on(const event::LayersComputed& event, Seconds now, Actions& out);
  void on(const event::Prefilled& event, Seconds now, Actions& out);
  void on(const event::Output& event);
  void on(const event::Finished& event, Seconds now, Actions& out);
  void on(const event::Rejected& event, Seconds now, Actions& out);
  void on(const event::PushDone& event, Seconds now, Actions& out);
  void on(const event::EndpointFailed& event, Seconds now, Actions& out);
  void on(const event::EndpointClosed& event);

  void cancel(const RequestKey& key, Seconds now, Actions& out);
  void higher_attempt(const RequestKey& key, Seconds now, Actions& out);  // ends all attempts below key's
  void router_expired(uint64_t router_epoch, Seconds now, Actions& out);

  bool knows(const RequestKey& key) const;
  std::optional<SenderState> state(const RequestKey& key) const;
  SenderCounts counts() const;

 private:
  std::unique_ptr<SenderTable> table_;
};

}  // namespace rtp_llm
