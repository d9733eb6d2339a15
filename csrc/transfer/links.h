// Links: a transport's endpoints: opened, admitted by their nonce, closed by force, gone.
//
// UCX's callbacks only note what happened to a link; accept_connections(), say_hellos(), close_failed() and reap() act
// on it. Thread rule: as Transport.
#pragma once

#include <deque>
#include <list>
#include <optional>
#include <string>
#include <unordered_map>

#include "transfer/link.h"
#include "transfer/listener_calls.h"
#include "transfer/nonces.h"
#include "transfer/transport_address.h"
#include "transfer/transport_config.h"
#include "transfer/ucx.h"

namespace rtp_llm {

class Links {
 public:
  // Listens. REQUIRES: config, worker and calls outlive it.
  Links(const TransportConfig& config, const TransportSettings& settings, ucx::Worker& worker, ListenerCalls& calls);

  const std::string& address() const { return address_; }
  uint64_t expect(const WorkerKey& peer);  // any thread

  // Throws InvalidArgument for an address that isn't one.
  void connect(const WorkerKey& peer, const std::string& address, uint64_t nonce);
  // One that stands, as far as known; nullptr: none.
  Link* open_link(Direction direction, const WorkerKey& peer);
  // Whose message this is; nullptr: nobody's that is known.
  Link* inbound_of(const ucp_am_recv_param_t* param) const;
  // A message came on an endpoint whose nonce hasn't.
  void reject_unnamed(Link& link);

  bool close_by_force(Direction direction, const WorkerKey& peer);
  bool closing(Direction direction, const WorkerKey& peer) const;
  // Closes all by force and waits for the fence, at most so long.
  void close_all(double seconds);

  // Each is false when there was nothing to do.
  bool accept_connections();
  bool say_hellos(double now);
  bool close_failed(double now);
  bool reap();
  bool waiting() const;  // there is something to do for one of them
  std::optional<double> next_deadline() const;

  void count(TransportCounts& counts) const;

 private:
  static void on_connection_request(ucp_conn_request_h request, void* self);
  static void on_error(void* link, ucp_ep_h, ucs_status_t status);
  static ucs_status_t on_hello(void* self, const void* header, size_t header_bytes, void*, size_t,
                               const ucp_am_recv_param_t* param);

  void admit(const void* hello, size_t num_bytes, const ucp_am_recv_param_t* param);
  void say_hello(Link& link);
  void start_close(Link& link);

  const TransportConfig& config_;
  ucx::Worker& worker_;
  ListenerCalls& calls_;
  std::list<Link> links_;  // stable addresses: UCX holds Link*
  std::unordered_map<ucp_ep_h, Link*> inbound_;
  Nonces nonces_;
  std::deque<ucp_conn_request_h> connection_requests_;
  uint64_t rejected_ = 0;
  ucx::Listener server_;
  TransportAddress own_;
  std::string address_;
};

}  // namespace rtp_llm
