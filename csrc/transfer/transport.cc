#include "transfer/transport.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <list>
#include <unordered_map>
#include <utility>

#include "transfer/link.h"
#include "transfer/nonces.h"
#include "transfer/transport_address.h"
#include "transfer/ucx.h"

namespace rtp_llm {
namespace {

constexpr unsigned kHelloId = 1;
constexpr unsigned kKvId = 2;
constexpr uint64_t kMaxEagerBytes = 64 << 10;
constexpr int kMaxProgressRounds = 64;  // then the thread looks at its other events
constexpr double kCloseRetryS = 0.001;  // a forced close moves on by progress alone, UCX may not signal its fd

struct [[gnu::packed]] HelloHeader {
  uint32_t magic = 0x4b505452;  // "RTPK"
  uint32_t version = 1;
  uint64_t nonce = 0;
};
static_assert(sizeof(HelloHeader) == 16);

}  // namespace

struct Transport::State {
  State(const TransportConfig& config, TransportListener& listener)
      : config(config),
        settings(transport_settings(config, [&](const std::string& text) { listener.on_warning(text); })),
        listener(listener),
        context(settings.ucx),
        worker(context),
        server(worker, config.listen_host, &State::on_connection_request, this) {
    worker.set_am_handler(kHelloId, &State::on_hello, this);
    worker.set_am_handler(kKvId, &State::on_message, this);
    own = {.host = config.advertise_host.empty() ? config.listen_host : config.advertise_host,
           .port = server.port(),
           .host_identity = host_identity(),
           .memory = settings.shared_memory ? "posix" : "tcp"};
    address = own.text();
  }

  // --- UCX's callbacks, inside worker.progress() or inside a call. They note what happened; progress() tells.

  static void on_connection_request(ucp_conn_request_h request, void* self) {
    static_cast<State*>(self)->connection_requests.push_back(request);
  }

  static void on_error(void* argument, ucp_ep_h, ucs_status_t status) {
    Link* link = static_cast<Link*>(argument);
    if (link->closing || link->failed) return;
    link->failed = true;
    link->reason = ucs_status_string(status);
  }

  static ucs_status_t on_hello(void* self, const void* header, size_t header_bytes, void*, size_t,
                               const ucp_am_recv_param_t* param) {
    static_cast<State*>(self)->admit(header, header_bytes, param);
    return UCS_OK;
  }

  static ucs_status_t on_message(void* self, const void* header, size_t header_bytes, void* data, size_t bytes,
                                 const ucp_am_recv_param_t* param) {
    return static_cast<State*>(self)->receive(header, header_bytes, data, bytes, param);
  }

  static void on_received(void* request, ucs_status_t status, size_t, void* argument) {
    ucx::Request freed(request);
    auto* operation = static_cast<Operation*>(argument);
    static_cast<State*>(operation->owner)->received(operation, status == UCS_OK);
  }

  static void on_sent(void* request, ucs_status_t status, void* argument) {
    ucx::Request freed(request);
    auto* operation = static_cast<Operation*>(argument);
    static_cast<State*>(operation->owner)->sent(operation, status == UCS_OK);
  }

  // --- Receiving.

  Link* inbound_of(const ucp_am_recv_param_t* param) const {
    if (!(param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP)) return nullptr;
    auto found = inbound.find(param->reply_ep);
    return found == inbound.end() ? nullptr : found->second;
  }

  void admit(const void* bytes, size_t num_bytes, const ucp_am_recv_param_t* param) {
    Link* link = inbound_of(param);
    if (link == nullptr || link->closing || link->failed) return;
    HelloHeader hello;
    if (num_bytes == sizeof hello) std::memcpy(&hello, bytes, sizeof hello);
    const bool known = hello.magic == HelloHeader{}.magic && hello.version == HelloHeader{}.version;
    const std::optional<WorkerKey> admitted =
        known && !link->named ? nonces.redeem(hello.nonce, monotonic_seconds()) : std::nullopt;
    if (!admitted) {
      link->failed = true;
      link->reason = link->named ? "a second nonce on one endpoint" : "unknown nonce";
      ++rejected;
      return;
    }
    link->named = true;
    link->peer = *admitted;
    // The peer has come back on a new endpoint: the old one says nothing any more.
    for (Link& old : links)
      if (&old != link && old.direction == Direction::kReceive && old.named && old.peer == link->peer && !old.closing &&
          !old.failed) {
        old.failed = true;
        old.reason = "the peer came back on a new endpoint";
      }
  }

  ucs_status_t receive(const void* header_bytes, size_t num_header_bytes, void* data, size_t bytes,
                       const ucp_am_recv_param_t* param) {
    Link* link = inbound_of(param);
    if (link != nullptr && !link->named && !link->failed) {
      link->failed = true;
      link->reason = "a message before the nonce";
      ++rejected;
    }
    KvMessageHeader header;
    if (link == nullptr || link->closing || link->failed || num_header_bytes != sizeof header) return refuse();
    std::memcpy(&header, header_bytes, sizeof header);
    if (header.version != KvMessageHeader{}.version) return refuse();
    std::optional<Acceptance> accepted = ask_listener(*link, header, bytes);
    if (!accepted) return refuse();

    ++link->receives;
    auto* operation = new Operation{
        .owner = this, .link = link, .tag = accepted->tag, .bytes = bytes, .iov = to_iov(accepted->pieces)};
    if (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) return receive_rendezvous(operation, data);
    const char* from = static_cast<const char*>(data);
    for (const ucp_dt_iov_t& run : operation->iov) {
      std::memcpy(run.buffer, from, run.length);
      from += run.length;
    }
    received(operation, true);
    return UCS_OK;
  }

  // An exception must not pass through UCX's frames: it is kept for progress().
  std::optional<Acceptance> ask_listener(const Link& link, const KvMessageHeader& header, uint64_t bytes) {
    try {
      std::optional<Acceptance> accepted = listener.accept(link.peer, header, bytes);
      const uint64_t room = accepted ? total_bytes(accepted->pieces) : bytes;
      check(room == bytes, "a message of ", bytes, " bytes was accepted into ", room);
      return accepted;
    } catch (...) {
      fault = std::current_exception();
      return std::nullopt;
    }
  }

  ucs_status_t receive_rendezvous(Operation* operation, void* descriptor) {
    ucp_request_param_t params{};
    params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
    params.cb.recv_am = &State::on_received;
    params.user_data = operation;
    size_t count = 0;
    const void* buffer = describe(operation->iov, params, count);
    void* request = ucp_am_recv_data_nbx(worker.get(), descriptor, const_cast<void*>(buffer), count, &params);
    if (!UCS_PTR_IS_PTR(request)) received(operation, UCS_PTR_STATUS(request) == UCS_OK);
    return UCS_INPROGRESS;  // the descriptor belongs to UCX now, also after an error
  }

  ucs_status_t refuse() {
    ++refused;
    return UCS_OK;  // the data is dropped and the peer's send completes
  }

  void received(Operation* operation, bool landed) {
    std::unique_ptr<Operation> owner(operation);
    Link* link = operation->link;
    --link->receives;
    if (landed) {
      LaneCounts& lane = lanes_of(*link);
      ++lane.messages_received;
      lane.bytes_received += operation->bytes;
    }
    told.push_back([this, tag = operation->tag, landed] { listener.on_received(tag, landed); });
  }

  // --- Sending.

  Link* open_link(Direction direction, const WorkerKey& peer) {
    for (Link& link : links)
      if (link.direction == direction && link.named && link.peer == peer && !link.closing && !link.failed) return &link;
    return nullptr;
  }

  void connect(const WorkerKey& peer, const std::string& text, uint64_t nonce) {
    const TransportAddress remote = TransportAddress::parse(text);
    if (Link* old = open_link(Direction::kSend, peer)) start_close(*old);
    Link& link = links.emplace_back(Direction::kSend, peer);
    link.named = true;
    link.shared_memory_expected =
        own.memory == "posix" && (config.mode == TransportMode::kSharedMemory ||
                                  (remote.memory == "posix" && remote.host_identity == own.host_identity));
    try {
      link.endpoint.emplace(ucx::Endpoint::connect(worker, remote.host, remote.port, &State::on_error, &link));
    } catch (...) {
      links.pop_back();
      throw;
    }
    HelloHeader hello{.nonce = nonce};
    ucp_request_param_t params{};
    params.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    params.flags = UCP_AM_SEND_FLAG_REPLY | UCP_AM_SEND_FLAG_EAGER | UCP_AM_SEND_FLAG_COPY_HEADER;
    void* request = ucp_am_send_nbx(link.endpoint->get(), kHelloId, &hello, sizeof hello, nullptr, 0, &params);
    if (UCS_PTR_IS_ERR(request)) {
      link.failed = true;
      link.reason = ucs_status_string(UCS_PTR_STATUS(request));
    } else if (request != nullptr) {
      ucp_request_free(request);  // UCX lets go of it when it has completed
    }
  }

  bool send(const WorkerKey& peer, const KvMessageHeader& header, const std::vector<Piece>& pieces, uint64_t tag) {
    Link* link = open_link(Direction::kSend, peer);
    if (link == nullptr) return false;
    const uint64_t bytes = total_bytes(pieces);
    check(bytes > 0, "a KV message without bytes");
    ++link->sends;
    auto* operation =
        new Operation{.owner = this, .link = link, .header = header, .tag = tag, .bytes = bytes, .iov = to_iov(pieces)};
    ucp_request_param_t params{};
    params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
    params.cb.send = &State::on_sent;
    params.user_data = operation;
    params.flags = UCP_AM_SEND_FLAG_REPLY | (bytes <= kMaxEagerBytes ? UCP_AM_SEND_FLAG_EAGER : UCP_AM_SEND_FLAG_RNDV);
    size_t count = 0;
    const void* buffer = describe(operation->iov, params, count);
    void* request = ucp_am_send_nbx(link->endpoint->get(), kKvId, &operation->header, sizeof operation->header, buffer,
                                    count, &params);
    if (!UCS_PTR_IS_PTR(request)) sent(operation, UCS_PTR_STATUS(request) == UCS_OK);
    return true;
  }

  void sent(Operation* operation, bool ok) {
    std::unique_ptr<Operation> owner(operation);
    Link* link = operation->link;
    --link->sends;
    if (ok) {
      LaneCounts& lane = lanes_of(*link);
      ++lane.messages_sent;
      lane.bytes_sent += operation->bytes;
    }
    told.push_back([this, tag = operation->tag, ok] { listener.on_sent(tag, ok); });
  }

  // The counters of what carries this endpoint's data; warns once when shared memory was dropped.
  LaneCounts& lanes_of(Link& link) {
    if (link.carrier.empty() && link.endpoint) {
      const std::vector<std::string> names = link.endpoint->lanes();
      std::string all;
      for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
      for (const char* carrier : {"posix", "self", "tcp"})
        if (link.carrier.empty() && all.find(concat(carrier, "/")) != std::string::npos) link.carrier = carrier;
      if (link.carrier == "tcp" && link.shared_memory_expected)
        told.push_back([this, peer = link.peer, all] {
          listener.on_warning(concat("no shared memory with ", peer.id, ": its lanes are ", all));
        });
    }
    return lane_counts[link.carrier.empty() ? "unknown" : link.carrier];
  }

  // --- Closing.

  void start_close(Link& link) {
    if (link.closing) return;
    link.closing = true;
    if (!link.endpoint) return;
    inbound.erase(link.endpoint->get());
    link.endpoint->close();
  }

  bool accept_connections() {
    bool any = false;
    for (; !connection_requests.empty(); any = true) {
      ucp_conn_request_h request = connection_requests.front();
      connection_requests.pop_front();
      Link& link = links.emplace_back(Direction::kReceive, WorkerKey{});
      try {
        link.endpoint.emplace(ucx::Endpoint::accept(worker, request, &State::on_error, &link));
        inbound[link.endpoint->get()] = &link;
      } catch (const ucx::UcxError& error) {  // the peer is gone already
        listener.on_warning(error.what());
        links.pop_back();
      }
    }
    return any;
  }

  bool close_failed(double now) {
    bool any = false;
    for (Link& link : links) {
      if (link.closing) continue;
      if (!link.named && !link.failed && now - link.opened_at > config.hello_timeout_s) {
        link.failed = true;
        link.reason = concat("no nonce within ", config.hello_timeout_s, " s");
        ++rejected;
      }
      if (link.failed) {
        start_close(link);
        any = true;
      }
    }
    return any;
  }

  bool reap() {
    bool any = false;
    for (auto link = links.begin(); link != links.end();) {
      if (!link->gone()) {
        ++link;
        continue;
      }
      any = true;
      if (link->named)
        told.push_back([this, direction = link->direction, peer = link->peer, reason = link->reason] {
          listener.on_closed(direction, peer, reason);
        });
      else
        told.push_back(
            [this, reason = link->reason] { listener.on_warning(concat("an endpoint was closed: ", reason)); });
      link = links.erase(link);
    }
    return any;
  }

  bool tell() {
    bool any = false;
    for (; !told.empty(); any = true) {
      auto next = std::move(told.front());
      told.pop_front();
      next();
    }
    return any;
  }

  bool progress(double now) {
    bool any = false;
    for (int round = 0; round < kMaxProgressRounds && worker.progress(); ++round) any = true;
    if (fault) std::rethrow_exception(std::exchange(fault, nullptr));
    any |= accept_connections();
    any |= close_failed(now);
    any |= reap();
    any |= tell();
    return any;
  }

  std::optional<double> next_deadline() const {
    std::optional<double> deadline;
    const auto at = [&](double time) { deadline = deadline ? std::min(*deadline, time) : time; };
    for (const Link& link : links) {
      if (link.closing)
        at(monotonic_seconds() + kCloseRetryS);
      else if (!link.named)
        at(link.opened_at + config.hello_timeout_s);
    }
    return deadline;
  }

  const TransportConfig config;
  const TransportSettings settings;
  TransportListener& listener;
  ucx::Context context;
  ucx::Worker worker;
  std::list<Link> links;  // stable addresses: UCX holds Link*
  std::unordered_map<ucp_ep_h, Link*> inbound;
  Nonces nonces;
  std::deque<ucp_conn_request_h> connection_requests;
  std::deque<std::function<void()>> told;  // calls of the listener that wait for progress()
  std::map<std::string, LaneCounts> lane_counts;
  std::exception_ptr fault;
  uint64_t refused = 0;
  uint64_t rejected = 0;
  ucx::Listener server;
  TransportAddress own;
  std::string address;
};

Transport::Transport(const TransportConfig& config, TransportListener& listener)
    : state_(std::make_unique<State>(config, listener)) {}

Transport::~Transport() {
  State& state = *state_;
  for (ucp_conn_request_h request : state.connection_requests) state.server.reject(request);
  state.connection_requests.clear();
  for (Link& link : state.links) state.start_close(link);
  const double give_up = monotonic_seconds() + 2;
  while (!state.links.empty() && monotonic_seconds() < give_up) {
    state.worker.progress();
    state.reap();
  }
}

const std::string& Transport::address() const { return state_->address; }

uint64_t Transport::expect(const WorkerKey& peer) { return state_->nonces.draw(peer, monotonic_seconds()); }

void Transport::connect(const WorkerKey& peer, const std::string& address, uint64_t nonce) {
  state_->connect(peer, address, nonce);
}

bool Transport::connected(const WorkerKey& peer) const { return state_->open_link(Direction::kSend, peer) != nullptr; }

bool Transport::send(const WorkerKey& peer, const KvMessageHeader& header, std::vector<Piece> pieces, uint64_t tag) {
  return state_->send(peer, header, pieces, tag);
}

bool Transport::close_by_force(Direction direction, const WorkerKey& peer) {
  bool any = false;
  for (Link& link : state_->links)
    if (link.direction == direction && link.named && link.peer == peer) {
      state_->start_close(link);
      any = true;
    }
  return any;
}

bool Transport::closing(Direction direction, const WorkerKey& peer) const {
  return std::any_of(state_->links.begin(), state_->links.end(), [&](const Link& link) {
    return link.direction == direction && link.named && link.peer == peer && (link.closing || link.failed);
  });
}

bool Transport::progress(double now) { return state_->progress(now); }
int Transport::event_fd() const { return state_->worker.event_fd(); }

bool Transport::arm() {
  const bool waiting = !state_->told.empty() || !state_->connection_requests.empty() ||
                       std::any_of(state_->links.begin(), state_->links.end(),
                                   [](const Link& link) { return link.failed && !link.closing; });
  return !waiting && state_->worker.arm();
}

std::optional<double> Transport::next_deadline() const { return state_->next_deadline(); }

TransportCounts Transport::counts() const {
  TransportCounts counts;
  for (const Link& link : state_->links) {
    ++(link.direction == Direction::kSend ? counts.outbound : counts.inbound);
    counts.sends_outstanding += link.sends;
    counts.receives_outstanding += link.receives;
  }
  counts.messages_refused = state_->refused;
  counts.endpoints_rejected = state_->rejected;
  counts.lanes = state_->lane_counts;
  return counts;
}

}  // namespace rtp_llm
