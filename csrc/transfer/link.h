// Link: an endpoint as the transport keeps it, and how pieces of memory are told to UCX. Plain data; links.cc and
// kv_messages.cc act.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "transfer/clock.h"
#include "transfer/transport.h"
#include "transfer/ucx.h"

namespace rtp_llm {

// One endpoint and what is outstanding on it.
struct Link {
  Link(Direction direction, WorkerKey peer)
      : direction(direction), peer(std::move(peer)), opened_at(monotonic_seconds()) {}

  // The fence: UCX may end the close before the callbacks of what it ended, and until then bytes may still land.
  bool gone() const { return closing && sends == 0 && receives == 0 && (!endpoint || endpoint->closed()); }

  Direction direction;
  WorkerKey peer;      // inbound: empty id until the nonce came
  bool named = false;  // outbound: always
  bool shared_memory_expected = false;
  std::optional<uint64_t> nonce;                // outbound: it is still to be said
  std::vector<std::function<void(bool)>> held;  // sends behind the nonce, told whether they may go
  double opened_at;
  int sends = 0;
  int receives = 0;
  bool closing = false;
  bool failed = false;
  std::string reason;
  std::string carrier;  // what carries the data; empty until asked
  std::optional<ucx::Endpoint> endpoint;
};

// Neighbours become one run.
std::vector<ucp_dt_iov_t> to_iov(const std::vector<Piece>& pieces);
uint64_t total_bytes(const std::vector<Piece>& pieces);
// Sets params' datatype: one buffer for a single run, an IOV list otherwise. Returns what UCX calls buffer and sets its
// count. REQUIRES: iov outlives the operation.
const void* describe(const std::vector<ucp_dt_iov_t>& iov, ucp_request_param_t& params, size_t& count);

}  // namespace rtp_llm
