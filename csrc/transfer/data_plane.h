// DataPlane: KV out of and into an engine's pool: PushLayers become messages, accepted messages land in granted
// blocks, both are summed, and what came of them is told as handover events.
//
// Every block that a message reads or writes is pinned in the block pool meanwhile. A push waits here while its
// endpoint is being made; closing the endpoint ends it. UCX reads and writes the pool itself, or, where the host does
// not reach the device's memory, a copy of the message in host memory (KvStaging).
//
// Thread rule: the transfer thread, but expect().
#pragma once

#include <deque>
#include <functional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "device/device.h"
#include "handover/actions.h"
#include "handover/receiver.h"
#include "transfer/engine_port.h"
#include "transfer/kv_pieces.h"
#include "transfer/kv_staging.h"
#include "transfer/trace.h"
#include "transfer/transport.h"

namespace rtp_llm {

struct DataPlaneCounts {
  TransportCounts transport;
  uint64_t payload_bytes_sent = 0, payload_bytes_received = 0;  // of messages that ended well
  uint64_t messages_sent = 0, messages_received = 0;
  uint64_t messages_failed = 0;
  int pushes_waiting = 0;  // for an endpoint
  int pushes_in_flight = 0, receives_in_flight = 0;
  std::unordered_map<uint8_t, uint64_t> refused;  // by Refusal
};

class DataPlane : private TransportListener {
 public:
  // What the data plane asks and tells; all on the transfer thread.
  struct Hooks {
    // Whether a message may land, and where (Handover::accept).
    std::function<std::variant<Destination, Refusal>(const WorkerKey&, const KvMessageHeader&, uint64_t)> accept;
    // PushDone, ReceiveDone, EndpointFailed, EndpointClosed. Called inside progress(), push(), close(), connect().
    std::function<void(Event)> tell;
    // There is something to send to this receiver and no endpoint: it wants an address and a fresh nonce.
    std::function<void(const WorkerKey&)> want_endpoint;
    std::function<void(const std::string&)> warn;
  };

  // `usual_tokens`: of the longest usual message, one layer group of them. REQUIRES: device, engine and trace outlive
  // it. Throws what Transport throws.
  DataPlane(Device& device, EnginePort& engine, const TransportConfig& config, int usual_tokens, Trace& trace,
            Hooks hooks);

  Transport& transport() { return transport_; }
  const Transport& transport() const { return transport_; }

  void push(const action::PushLayers& push);
  // Ends pushes that wait for the endpoint, too; then EndpointClosed.
  void close(const WorkerKey& peer, Direction direction);
  // Unless an endpoint to the receiver stands.
  void connect(const WorkerKey& receiver, const std::string& address, uint64_t nonce);
  // No endpoint will come: pushes that wait for one fail.
  void abandon(const WorkerKey& receiver);

  DataPlaneCounts counts() const;

 private:
  struct Push {
    action::PushLayers action;
    uint64_t bytes = 0;
    uint64_t checksum = 0;
    KvStaging::Slot staged;
  };
  struct Receive {
    Destination destination;
    uint64_t bytes = 0;
    KvStaging::Slot staged;
  };

  std::optional<Acceptance> accept(const WorkerKey& from, const KvMessageHeader& header, uint64_t bytes) override;
  void on_received(uint64_t tag, bool landed) override;
  void on_sent(uint64_t tag, bool sent) override;
  void on_closed(Direction direction, const WorkerKey& peer, const std::string& reason) override;
  void on_warning(const std::string& text) override { hooks_.warn(text); }

  bool post(uint64_t tag, Push& push);
  KvSpan span_of(const action::PushLayers& push) const;
  KvSpan span_of(const Destination& destination) const;
  std::vector<Piece> pieces_of(const KvSpan& span) const;
  uint64_t checksum(const KvSpan& span) const;
  void trace(TracePoint point, Seconds time, const RequestKey& key, const KvSpan& span, uint64_t bytes);

  Device& device_;
  EnginePort& engine_;
  Trace& trace_;
  Hooks hooks_;
  const KvGroup group_;
  uint64_t last_tag_ = 0;
  std::optional<KvStaging> staging_;  // before the slots
  std::unordered_map<uint64_t, Push> pushes_;
  std::unordered_map<uint64_t, Receive> receives_;
  std::map<WorkerKey, std::deque<uint64_t>> waiting_;  // pushes without an endpoint, by receiver
  std::set<std::pair<Direction, WorkerKey>> close_wanted_;
  DataPlaneCounts counts_;
  Transport transport_;  // last: it may warn while it opens
};

}  // namespace rtp_llm
