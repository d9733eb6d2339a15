// KvMessages: a transport's KV messages, out of and into pieces of memory.
//
// Each that is sent ends with on_sent, each that is accepted with on_received, whatever becomes of its endpoint.
// Thread rule: as Transport.
#pragma once

#include <exception>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "transfer/links.h"
#include "transfer/listener_calls.h"
#include "transfer/ucx.h"

namespace rtp_llm {

class KvMessages {
 public:
  // REQUIRES: all outlive it.
  KvMessages(ucx::Worker& worker, Links& links, ListenerCalls& calls);

  // False, and nothing was done, without an outbound endpoint.
  bool send(const WorkerKey& peer, const KvMessageHeader& header, const std::vector<Piece>& pieces, uint64_t tag);
  // What the listener threw inside UCX's frames.
  void rethrow();

  void count(TransportCounts& counts) const;

 private:
  // A message on its way; UCX reads header and list until the callback.
  struct Operation {
    KvMessages* owner;
    Link* link;
    KvMessageHeader header{};
    uint64_t tag = 0;
    uint64_t bytes = 0;
    std::vector<ucp_dt_iov_t> iov;
  };

  static ucs_status_t on_message(void* self, const void* header, size_t header_bytes, void* data, size_t bytes,
                                 const ucp_am_recv_param_t* param);
  static void on_received(void* request, ucs_status_t status, size_t, void* operation);
  static void on_sent(void* request, ucs_status_t status, void* operation);

  ucs_status_t receive(const void* header_bytes, size_t num_header_bytes, void* data, size_t bytes,
                       const ucp_am_recv_param_t* param);
  std::optional<Acceptance> ask_listener(const Link& link, const KvMessageHeader& header, uint64_t bytes);
  ucs_status_t receive_rendezvous(Operation* operation, void* descriptor);
  ucs_status_t refuse();
  void received(Operation* operation, bool landed);
  void post(Operation* operation);
  void sent(Operation* operation, bool ok);
  LaneCounts& lanes_of(Link& link);

  ucx::Worker& worker_;
  Links& links_;
  ListenerCalls& calls_;
  std::map<std::string, LaneCounts> lane_counts_;
  std::exception_ptr fault_;
  uint64_t refused_ = 0;
};

}  // namespace rtp_llm
