// Transport: KV messages between workers over UCX, and the fence that ends them.
//
// A message is a KvMessageHeader and the bytes of some pieces of memory; the receiving side chooses where they land
// (or that they are dropped) when the header arrives, so no key to memory leaves a process. A sender connects to the
// receiver's address; the endpoint's first message is a nonce that the receiver drew and that travelled over an
// authenticated channel; an endpoint without one is closed. Endpoints are named by (worker id, epoch); one outbound
// and one inbound a peer.
//
// The fence: close_by_force() starts a forced close and on_closed() is called when every callback of the endpoint's
// sends and receives has fired. Only then can nothing more be written here, or read, on the peer's behalf. Closing
// alone fences nothing. What UCX says about a peer's health is a hint; such an endpoint is closed by force too.
//
// Not here: grants, retries, leases (handover/), what the pieces are (transfer/kv_pieces.h).
//
// Thread rule: after construction all methods but expect() on one thread, the progress thread. The listener is called
// inside progress() on that thread and may call back, except from accept().
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "handover/events.h"
#include "transfer/transport_config.h"

namespace rtp_llm {

// A contiguous run of memory of the KV pool or of a ring.
struct Piece {
  void* data = nullptr;
  uint64_t bytes = 0;
};

// Where an arriving message goes: pieces in wire order. `tag` comes back with on_received.
struct Acceptance {
  std::vector<Piece> pieces;
  uint64_t tag = 0;
};

class TransportListener {
 public:
  virtual ~TransportListener() = default;
  // A message of `bytes` from an authenticated peer: where to scatter it, exactly `bytes` in all, or nullopt: dropped.
  // Each accepted message ends with one on_received. Must not call the transport.
  virtual std::optional<Acceptance> accept(const WorkerKey& from, const KvMessageHeader& header, uint64_t bytes) = 0;
  // landed: all bytes are in place. Otherwise the endpoint died; part of them may be.
  virtual void on_received(uint64_t tag, bool landed) = 0;
  // The pieces of send(…, tag) are no longer read. sent: handed to the peer's transport, not more.
  virtual void on_sent(uint64_t tag, bool sent) = 0;
  // An endpoint is gone, nothing of it is outstanding. reason: empty after close_by_force.
  virtual void on_closed(Direction direction, const WorkerKey& peer, const std::string& reason) = 0;
  virtual void on_warning(const std::string& text) = 0;
};

struct LaneCounts {
  uint64_t messages_sent = 0, bytes_sent = 0, messages_received = 0, bytes_received = 0;
};

struct TransportCounts {
  int outbound = 0, inbound = 0;  // endpoints, closing ones included
  int sends_outstanding = 0, receives_outstanding = 0;
  uint64_t messages_refused = 0;
  uint64_t endpoints_rejected = 0;          // no nonce, or a wrong one
  std::map<std::string, LaneCounts> lanes;  // "posix", "tcp", "self": what carries an endpoint's data
};

class Transport {
 public:
  // Opens UCX and listens. Throws UcxError, InvalidArgument. REQUIRES: listener outlives it.
  Transport(const TransportConfig& config, TransportListener& listener);
  ~Transport();  // closes all by force and waits for the fence, at most 2 s

  // What a peer's connect() needs: opaque text.
  const std::string& address() const;

  // Draws the nonce that admits `peer` once; an earlier, unused one of this peer is void. Any
  // thread.
  uint64_t expect(const WorkerKey& peer);
  // Starts to connect and says the nonce; an outbound endpoint to the peer that exists is closed by force. Throws
  // InvalidArgument for an address that isn't one.
  void connect(const WorkerKey& peer, const std::string& address, uint64_t nonce);
  bool connected(const WorkerKey& peer) const;  // an outbound endpoint stands (as far as known) and is not closing

  // Sends the pieces, in this order, as one message. False, and nothing was done, without an outbound endpoint.
  // The pieces stay unchanged until on_sent(tag).
  bool send(const WorkerKey& peer, const KvMessageHeader& header, std::vector<Piece> pieces, uint64_t tag);

  // False: there is no such endpoint, on_closed will not be called for it.
  bool close_by_force(Direction direction, const WorkerKey& peer);
  // Whether such an endpoint is on its way to on_closed.
  bool closing(Direction direction, const WorkerKey& peer) const;

  // Runs what is ready; false when nothing happened.
  bool progress(double now);
  // The fd to wait on (readable: progress() has work) once arm() returned true.
  int event_fd() const;
  bool arm();
  // When progress() must run though the fd is silent (seconds, monotonic); nullopt: never.
  std::optional<double> next_deadline() const;

  TransportCounts counts() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace rtp_llm
