// KvTransfer: the transfer thread of a worker. It owns the handover machines and the data plane, and stands between
// the engine, the sessions (Python) and UCX.
//
//   engine thread ──EngineListener──▶ ┐              ┌─▶ Engine::add, join, cancel, release
//   Python sessions ──post()────────▶ │ one queue ▶ Handover ▶ actions ┼─▶ DataPlane (UCX messages, pins, checksums)
//   UCX ──DataPlane────────────────▶ ┘              └─▶ take(): session messages for Python, one fd
//
// The thread blocks while there is nothing to do: on UCX's event fd, the queue's eventfd and a timer for the next
// deadline. A Reserve is answered without the step loop.
//
// Thread rule: all public methods from any thread but a caller of the engine's listener. `counts`, `trace` and
// `check_idle` ask the thread and wait for its answer.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "handover/handover.h"
#include "handover/token_columns.h"
#include "transfer/block_grants.h"
#include "transfer/data_plane.h"
#include "transfer/engine_bridge.h"
#include "transfer/engine_port.h"
#include "transfer/event_queue.h"
#include "transfer/handover_figures.h"
#include "transfer/trace.h"
#include "transfer/wakeup.h"

namespace rtp_llm {

struct KvTransferConfig {
  TransportConfig transport;
  HandoverTimes times;
  int max_push_tokens = 512;
  int64_t max_queued_tokens = INT64_MAX;  // a Submit while more is queued is Busy
  size_t trace_entries = 8192;
};

// What Python sends, in this order. A message into a session that is down is dropped: the protocol repeats.
namespace outgoing {
using action::Meet;
using action::ToReceiver;
using action::ToRouter;
using action::ToSender;
// There is KV for this receiver and no endpoint: say hello again, then connect() with what the answer holds.
struct WantEndpoint {
  WorkerKey receiver;
};
struct Warning {
  std::string text;
};
// The transfer thread has ended: it or the engine broke an invariant. Nothing more will come.
struct Fault {
  std::string text;
};
}  // namespace outgoing
using Outgoing = std::variant<outgoing::ToRouter, outgoing::ToSender, outgoing::ToReceiver, outgoing::Meet,
                              outgoing::WantEndpoint, outgoing::Warning, outgoing::Fault>;

struct KvTransferCounts : HandoverTotals {
  HandoverCounts handover;
  DataPlaneCounts data;
};

class KvTransfer {
 public:
  // Opens UCX, listens, and becomes the engine's listener. REQUIRES: the engine has not started; device and engine
  // outlive this. Throws UcxError, InvalidArgument.
  KvTransfer(Device& device, EnginePort& engine, WorkerKey self, KvTransferConfig config);
  ~KvTransfer();  // stops the engine, then itself

  void start();
  void stop();

  const WorkerKey& self() const { return self_; }
  const std::string& address() const { return address_; }  // for PeerHello.transport_address

  // The nonce of a PeerHello to this sender; it admits one endpoint.
  uint64_t expect(const WorkerKey& sender) { return data_.transport().expect(sender); }
  // With what a PeerHello of the receiver held. Nothing happens if an endpoint to it stands.
  void connect(const WorkerKey& receiver, const std::string& address, uint64_t nonce);

  // Hands an event to the machines. Of a Submit the queue's length and limit are filled in, and whether the engine
  // could ever run it. Throws Error after a fault.
  void post(Event event);
  // Tokens that were sent to their routers (or lost with the session): remembered for a replay.
  void post_outputs(const TokenColumns& columns);

  // What is to be sent, in order. fd() is readable when there is something.
  int fd() const { return outbox_.fd(); }
  std::vector<Outgoing> take() { return outbox_.take(); }

  KvTransferCounts counts();
  std::vector<TraceEntry> trace(const std::optional<RequestKey>& key);
  // Nothing in any machine, nothing in flight. Throws Error naming what isn't.
  void check_idle();

 private:
  using Task = TransferTask;

  // The transfer thread.
  void run();
  bool step();
  void perform_taken();
  void perform_what_is_left();
  void wait();
  Seconds now();
  void handle(Event event);
  void complete(Event& event) const;
  void perform(const Task& task);
  void perform(const ComputedLayers& piece);
  bool hand_on_stored();
  void hand_on(const ComputedLayers& piece, Seconds stored_at);
  void perform(Actions actions);
  void perform(const action::ToRouter& action);
  void perform(const action::ToSender& action);
  void perform(const action::ToReceiver& action);
  void perform(const action::Meet& action);
  void perform(const action::EnqueueSequence& action);
  void perform(const action::JoinSequence& action);
  void perform(const action::CancelSequence& action);
  void perform(const action::ReleaseBlocks& action);
  void perform(const action::PushLayers& action);
  void perform(const action::CloseEndpoint& action);
  void fail(const std::string& text);
  // Runs on the transfer thread (or here, if it doesn't run) and waits.
  void ask(const Task& task);

  Device& device_;
  EnginePort& engine_;
  const WorkerKey self_;
  const KvTransferConfig config_;
  const HandoverConfig handover_config_;
  std::string address_;

  TransferInbox inbox_;
  EventQueue<Outgoing> outbox_;
  std::atomic<bool> wants_room_ = false;  // a Reserve waits

  // The transfer thread's.
  BlockGrants grants_;
  Handover handover_;
  HandoverFigures figures_;
  EngineBridge bridge_;
  DataPlane data_;
  Wakeup wakeup_;
  Seconds last_now_ = 0;
  std::vector<std::variant<ComputedLayers, Task>> taken_;  // from the inbox, being done
  size_t next_taken_ = 0;
  std::deque<ComputedLayers> launched_;  // layers that the device is not known to have stored yet, in order
  bool handling_ = false;
  std::vector<Event> events_;  // that came up while another one was handled
  Actions actions_;            // of accept(): done when UCX has returned

  std::mutex mutex_;  // guards what follows
  std::optional<std::string> fault_;
  bool running_ = false;
  bool stopping_ = false;  // the thread's own, set by a task
  std::thread thread_;

  BlockPool::RoomListener room_;  // last: ends before what it touches
};

}  // namespace rtp_llm
