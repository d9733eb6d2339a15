#include "transfer/links.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "transfer/clock.h"
#include "transfer/message_ids.h"

namespace rtp_llm {
namespace {

constexpr double kLaneS = 1;            // that a lane of shared memory is waited for
constexpr double kCloseRetryS = 0.001;  // a forced close moves on by progress alone, UCX may not signal its fd

struct [[gnu::packed]] HelloHeader {
  uint32_t magic = 0x4b505452;  // "RTPK"
  uint32_t version = 1;
  uint64_t nonce = 0;
};
static_assert(sizeof(HelloHeader) == 16);

}  // namespace

Links::Links(const TransportConfig& config, const TransportSettings& settings, ucx::Worker& worker,
             ListenerCalls& calls)
    : config_(config),
      worker_(worker),
      calls_(calls),
      server_(worker, config.listen_host, &Links::on_connection_request, this),
      own_{.host = config.advertise_host.empty() ? config.listen_host : config.advertise_host,
           .port = server_.port(),
           .host_identity = host_identity(),
           .memory = settings.shared_memory ? "posix" : "tcp"},
      address_(own_.text()) {
  worker.set_am_handler(kHelloId, &Links::on_hello, this);
}

// ---- UCX's callbacks, inside worker.progress() or inside a call

void Links::on_connection_request(ucp_conn_request_h request, void* self) {
  static_cast<Links*>(self)->connection_requests_.push_back(request);
}

void Links::on_error(void* argument, ucp_ep_h, ucs_status_t status) {
  Link* link = static_cast<Link*>(argument);
  if (link->closing || link->failed) return;
  link->failed = true;
  link->reason = ucs_status_string(status);
}

ucs_status_t Links::on_hello(void* self, const void* header, size_t header_bytes, void*, size_t,
                             const ucp_am_recv_param_t* param) {
  static_cast<Links*>(self)->admit(header, header_bytes, param);
  return UCS_OK;
}

void Links::admit(const void* bytes, size_t num_bytes, const ucp_am_recv_param_t* param) {
  Link* link = inbound_of(param);
  if (link == nullptr || link->closing || link->failed) return;
  HelloHeader hello;
  if (num_bytes == sizeof hello) std::memcpy(&hello, bytes, sizeof hello);
  const bool known = hello.magic == HelloHeader{}.magic && hello.version == HelloHeader{}.version;
  const std::optional<WorkerKey> admitted =
      known && !link->named ? nonces_.redeem(hello.nonce, monotonic_seconds()) : std::nullopt;
  if (!admitted) {
    link->failed = true;
    link->reason = link->named ? "a second nonce on one endpoint" : "unknown nonce";
    ++rejected_;
    return;
  }
  link->named = true;
  link->peer = *admitted;
  // The peer has come back on a new endpoint: the old one says nothing any more.
  for (Link& old : links_)
    if (&old != link && old.direction == Direction::kReceive && old.named && old.peer == link->peer && !old.closing &&
        !old.failed) {
      old.failed = true;
      old.reason = "the peer came back on a new endpoint";
    }
}

// ---- Opening

uint64_t Links::expect(const WorkerKey& peer) { return nonces_.draw(peer, monotonic_seconds()); }

Link* Links::inbound_of(const ucp_am_recv_param_t* param) const {
  if (!(param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP)) return nullptr;
  auto found = inbound_.find(param->reply_ep);
  return found == inbound_.end() ? nullptr : found->second;
}

Link* Links::open_link(Direction direction, const WorkerKey& peer) {
  for (Link& link : links_)
    if (link.direction == direction && link.named && link.peer == peer && !link.closing && !link.failed) return &link;
  return nullptr;
}

void Links::connect(const WorkerKey& peer, const std::string& text, uint64_t nonce) {
  const TransportAddress remote = TransportAddress::parse(text);
  if (Link* old = open_link(Direction::kSend, peer)) start_close(*old);
  Link& link = links_.emplace_back(Direction::kSend, peer);
  link.named = true;
  link.shared_memory_expected =
      own_.memory == "posix" && (config_.mode == TransportMode::kSharedMemory ||
                                 (remote.memory == "posix" && remote.host_identity == own_.host_identity));
  try {
    link.endpoint.emplace(ucx::Endpoint::connect(worker_, remote.host, remote.port, &Links::on_error, &link));
  } catch (...) {
    links_.pop_back();
    throw;
  }
  link.nonce = nonce;
  if (!link.shared_memory_expected) say_hello(link);
}

// What is sent before UCX has made its lanes is held back by it, and sent also when it failed to make one: 1.22 calls
// through a null pointer (the peer was killed meanwhile, its memory is gone and its sockets still stand). So nothing is
// sent before the lane that can fail is listed, or its failure told.
bool Links::say_hellos(double now) {
  bool any = false;
  for (Link& link : links_) {
    if (!link.nonce || link.closing || link.failed) continue;
    const std::vector<std::string> lanes = link.endpoint->lanes();
    if (now - link.opened_at <= kLaneS &&
        std::none_of(lanes.begin(), lanes.end(), [](const std::string& lane) { return lane.starts_with("posix/"); }))
      continue;
    say_hello(link);
    any = true;
  }
  return any;
}

void Links::say_hello(Link& link) {
  HelloHeader hello{.nonce = *std::exchange(link.nonce, std::nullopt)};
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
  if (link.failed) return;
  for (const auto& send : std::exchange(link.held, {})) send(true);
}

void Links::reject_unnamed(Link& link) {
  link.failed = true;
  link.reason = "a message before the nonce";
  ++rejected_;
}

bool Links::accept_connections() {
  bool any = false;
  for (; !connection_requests_.empty(); any = true) {
    ucp_conn_request_h request = connection_requests_.front();
    connection_requests_.pop_front();
    Link& link = links_.emplace_back(Direction::kReceive, WorkerKey{});
    try {
      link.endpoint.emplace(ucx::Endpoint::accept(worker_, request, &Links::on_error, &link));
      inbound_[link.endpoint->get()] = &link;
    } catch (const ucx::UcxError& error) {  // the peer is gone already
      calls_.listener().on_warning(error.what());
      links_.pop_back();
    }
  }
  return any;
}

// ---- Closing

void Links::start_close(Link& link) {
  if (link.closing) return;
  link.closing = true;
  for (const auto& send : std::exchange(link.held, {})) send(false);
  if (!link.endpoint) return;
  inbound_.erase(link.endpoint->get());
  link.endpoint->close();
}

bool Links::close_by_force(Direction direction, const WorkerKey& peer) {
  bool any = false;
  for (Link& link : links_)
    if (link.direction == direction && link.named && link.peer == peer) {
      start_close(link);
      any = true;
    }
  return any;
}

bool Links::closing(Direction direction, const WorkerKey& peer) const {
  return std::any_of(links_.begin(), links_.end(), [&](const Link& link) {
    return link.direction == direction && link.named && link.peer == peer && (link.closing || link.failed);
  });
}

void Links::close_all(double seconds) {
  for (ucp_conn_request_h request : connection_requests_) server_.reject(request);
  connection_requests_.clear();
  for (Link& link : links_) start_close(link);
  const double give_up = monotonic_seconds() + seconds;
  while (!links_.empty() && monotonic_seconds() < give_up) {
    worker_.progress();
    reap();
  }
}

bool Links::close_failed(double now) {
  bool any = false;
  for (Link& link : links_) {
    if (link.closing) continue;
    if (!link.named && !link.failed && now - link.opened_at > config_.hello_timeout_s) {
      link.failed = true;
      link.reason = concat("no nonce within ", config_.hello_timeout_s, " s");
      ++rejected_;
    }
    if (link.failed) {
      start_close(link);
      any = true;
    }
  }
  return any;
}

bool Links::reap() {
  bool any = false;
  for (auto link = links_.begin(); link != links_.end();) {
    if (!link->gone()) {
      ++link;
      continue;
    }
    any = true;
    if (link->named)
      calls_.later([direction = link->direction, peer = link->peer, reason = link->reason](
                       TransportListener& listener) { listener.on_closed(direction, peer, reason); });
    else
      calls_.later([reason = link->reason](TransportListener& listener) {
        listener.on_warning(concat("an endpoint was closed: ", reason));
      });
    link = links_.erase(link);
  }
  return any;
}

// ---- Waiting, counting

bool Links::waiting() const {
  return !connection_requests_.empty() ||
         std::any_of(links_.begin(), links_.end(), [](const Link& link) { return link.failed && !link.closing; });
}

std::optional<double> Links::next_deadline() const {
  std::optional<double> deadline;
  const auto at = [&](double time) { deadline = deadline ? std::min(*deadline, time) : time; };
  for (const Link& link : links_) {
    if (link.closing)
      at(monotonic_seconds() + kCloseRetryS);
    else if (!link.named)
      at(link.opened_at + config_.hello_timeout_s);
    else if (link.nonce)
      at(link.opened_at + kLaneS);
  }
  return deadline;
}

void Links::count(TransportCounts& counts) const {
  for (const Link& link : links_) {
    ++(link.direction == Direction::kSend ? counts.outbound : counts.inbound);
    counts.sends_outstanding += link.sends;
    counts.receives_outstanding += link.receives;
  }
  counts.endpoints_rejected = rejected_;
}

}  // namespace rtp_llm
