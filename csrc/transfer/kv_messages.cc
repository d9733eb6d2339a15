#include "transfer/kv_messages.h"

#include <cstring>
#include <memory>
#include <utility>

#include "transfer/message_ids.h"

namespace rtp_llm {
namespace {

constexpr uint64_t kMaxEagerBytes = 64 << 10;

}  // namespace

KvMessages::KvMessages(ucx::Worker& worker, Links& links, ListenerCalls& calls)
    : worker_(worker), links_(links), calls_(calls) {
  worker.set_am_handler(kKvId, &KvMessages::on_message, this);
}

// ---- UCX's callbacks, inside worker.progress() or inside a call

ucs_status_t KvMessages::on_message(void* self, const void* header, size_t header_bytes, void* data, size_t bytes,
                                    const ucp_am_recv_param_t* param) {
  return static_cast<KvMessages*>(self)->receive(header, header_bytes, data, bytes, param);
}

void KvMessages::on_received(void* request, ucs_status_t status, size_t, void* argument) {
  ucx::Request freed(request);
  auto* operation = static_cast<Operation*>(argument);
  operation->owner->received(operation, status == UCS_OK);
}

void KvMessages::on_sent(void* request, ucs_status_t status, void* argument) {
  ucx::Request freed(request);
  auto* operation = static_cast<Operation*>(argument);
  operation->owner->sent(operation, status == UCS_OK);
}

// ---- Receiving

ucs_status_t KvMessages::receive(const void* header_bytes, size_t num_header_bytes, void* data, size_t bytes,
                                 const ucp_am_recv_param_t* param) {
  Link* link = links_.inbound_of(param);
  if (link != nullptr && !link->named && !link->failed) links_.reject_unnamed(*link);
  KvMessageHeader header;
  if (link == nullptr || link->closing || link->failed || num_header_bytes != sizeof header) return refuse();
  std::memcpy(&header, header_bytes, sizeof header);
  if (header.version != KvMessageHeader{}.version) return refuse();
  std::optional<Acceptance> accepted = ask_listener(*link, header, bytes);
  if (!accepted) return refuse();

  ++link->receives;
  auto* operation =
      new Operation{.owner = this, .link = link, .tag = accepted->tag, .bytes = bytes, .iov = to_iov(accepted->pieces)};
  if (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) return receive_rendezvous(operation, data);
  const char* from = static_cast<const char*>(data);
  for (const ucp_dt_iov_t& run : operation->iov) {
    std::memcpy(run.buffer, from, run.length);
    from += run.length;
  }
  received(operation, true);
  return UCS_OK;
}

// An exception must not pass through UCX's frames: it is kept for rethrow().
std::optional<Acceptance> KvMessages::ask_listener(const Link& link, const KvMessageHeader& header, uint64_t bytes) {
  try {
    std::optional<Acceptance> accepted = calls_.listener().accept(link.peer, header, bytes);
    const uint64_t given = accepted ? total_bytes(accepted->pieces) : bytes;
    check(given == bytes, "a message of ", bytes, " bytes was accepted into ", given);
    return accepted;
  } catch (...) {
    fault_ = std::current_exception();
    return std::nullopt;
  }
}

void KvMessages::rethrow() {
  if (fault_) std::rethrow_exception(std::exchange(fault_, nullptr));
}

ucs_status_t KvMessages::receive_rendezvous(Operation* operation, void* descriptor) {
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  params.cb.recv_am = &KvMessages::on_received;
  params.user_data = operation;
  size_t count = 0;
  const void* buffer = describe(operation->iov, params, count);
  void* request = ucp_am_recv_data_nbx(worker_.get(), descriptor, const_cast<void*>(buffer), count, &params);
  if (!UCS_PTR_IS_PTR(request)) received(operation, UCS_PTR_STATUS(request) == UCS_OK);
  return UCS_INPROGRESS;  // the descriptor belongs to UCX now, also after an error
}

ucs_status_t KvMessages::refuse() {
  ++refused_;
  return UCS_OK;  // the data is dropped and the peer's send completes
}

void KvMessages::received(Operation* operation, bool landed) {
  std::unique_ptr<Operation> owner(operation);
  Link* link = operation->link;
  --link->receives;
  if (landed) {
    LaneCounts& lane = lanes_of(*link);
    ++lane.messages_received;
    lane.bytes_received += operation->bytes;
  }
  calls_.later([tag = operation->tag, landed](TransportListener& listener) { listener.on_received(tag, landed); });
}

// ---- Sending

bool KvMessages::send(const WorkerKey& peer, const KvMessageHeader& header, const std::vector<Piece>& pieces,
                      uint64_t tag) {
  Link* link = links_.open_link(Direction::kSend, peer);
  if (link == nullptr) return false;
  const uint64_t bytes = total_bytes(pieces);
  check(bytes > 0, "a KV message without bytes");
  ++link->sends;
  auto* operation =
      new Operation{.owner = this, .link = link, .header = header, .tag = tag, .bytes = bytes, .iov = to_iov(pieces)};
  if (link->nonce)
    link->held.emplace_back([this, operation](bool goes) { goes ? post(operation) : sent(operation, false); });
  else
    post(operation);
  return true;
}

void KvMessages::post(Operation* operation) {
  const uint64_t bytes = operation->bytes;
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  params.cb.send = &KvMessages::on_sent;
  params.user_data = operation;
  params.flags = UCP_AM_SEND_FLAG_REPLY | (bytes <= kMaxEagerBytes ? UCP_AM_SEND_FLAG_EAGER : UCP_AM_SEND_FLAG_RNDV);
  size_t count = 0;
  const void* buffer = describe(operation->iov, params, count);
  void* request = ucp_am_send_nbx(operation->link->endpoint->get(), kKvId, &operation->header, sizeof operation->header,
                                  buffer, count, &params);
  if (!UCS_PTR_IS_PTR(request)) sent(operation, UCS_PTR_STATUS(request) == UCS_OK);
}

void KvMessages::sent(Operation* operation, bool ok) {
  std::unique_ptr<Operation> owner(operation);
  Link* link = operation->link;
  --link->sends;
  if (ok) {
    LaneCounts& lane = lanes_of(*link);
    ++lane.messages_sent;
    lane.bytes_sent += operation->bytes;
  }
  calls_.later([tag = operation->tag, ok](TransportListener& listener) { listener.on_sent(tag, ok); });
}

// ---- Counting

// The counters of what carries this endpoint's data; warns once when shared memory was dropped.
LaneCounts& KvMessages::lanes_of(Link& link) {
  if (link.carrier.empty() && link.endpoint) {
    const std::vector<std::string> names = link.endpoint->lanes();
    std::string all;
    for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
    for (const char* carrier : {"posix", "self", "tcp"})
      if (link.carrier.empty() && all.find(concat(carrier, "/")) != std::string::npos) link.carrier = carrier;
    if (link.carrier == "tcp" && link.shared_memory_expected)
      calls_.later([peer = link.peer, all](TransportListener& listener) {
        listener.on_warning(concat("no shared memory with ", peer.id, ": its lanes are ", all));
      });
  }
  return lane_counts_[link.carrier.empty() ? "unknown" : link.carrier];
}

void KvMessages::count(TransportCounts& counts) const {
  counts.messages_refused = refused_;
  counts.lanes = lane_counts_;
}

}  // namespace rtp_llm
