#include "transfer/ucx.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <utility>

namespace rtp_llm::ucx {

UcxError::UcxError(const std::string& what, ucs_status_t status)
    : Unavailable(concat(what, ": ", ucs_status_string(status))), status_(status) {}

void check_status(ucs_status_t status, const std::string& what) {
  if (status != UCS_OK) throw UcxError(what, status);
}

namespace {

struct ReleaseConfig {
  void operator()(ucp_config_t* config) const { ucp_config_release(config); }
};

}  // namespace

Context::Context(const Settings& settings) {
  ucp_config_t* raw = nullptr;
  check_status(ucp_config_read(nullptr, nullptr, &raw), "reading UCX's configuration");
  std::unique_ptr<ucp_config_t, ReleaseConfig> config(raw);
  for (const auto& [name, value] : settings)
    check_status(ucp_config_modify(config.get(), name.c_str(), value.c_str()),
                 concat("UCX setting ", name, "=", value));
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.name = "rtp_llm";
  ucp_context_h handle = nullptr;
  check_status(ucp_init(&params, config.get(), &handle), "opening UCX");
  handle_.reset(handle);
}

Worker::Worker(Context& context) {
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  ucp_worker_h handle = nullptr;
  check_status(ucp_worker_create(context.get(), &params, &handle), "making a UCX worker");
  handle_.reset(handle);
  check_status(ucp_worker_get_efd(handle, &event_fd_), "getting the event fd of a UCX worker");
}

bool Worker::arm() {
  const ucs_status_t status = ucp_worker_arm(handle_.get());
  if (status == UCS_ERR_BUSY) return false;
  check_status(status, "arming a UCX worker");
  return true;
}

void Worker::set_am_handler(unsigned id, ucp_am_recv_callback_t callback, void* argument) {
  ucp_am_handler_param_t params{};
  params.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS | UCP_AM_HANDLER_PARAM_FIELD_CB |
                      UCP_AM_HANDLER_PARAM_FIELD_ARG;
  params.id = id;
  params.flags = UCP_AM_FLAG_WHOLE_MSG;
  params.cb = callback;
  params.arg = argument;
  check_status(ucp_worker_set_am_recv_handler(handle_.get(), &params), concat("setting UCX's handler ", id));
}

Listener::Listener(Worker& worker, const std::string& host, ucp_listener_conn_callback_t on_request, void* argument) {
  const sockaddr_storage address = socket_address(host, 0);
  ucp_listener_params_t params{};
  params.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
  params.sockaddr.addr = reinterpret_cast<const sockaddr*>(&address);
  params.sockaddr.addrlen = socket_address_length(address);
  params.conn_handler.cb = on_request;
  params.conn_handler.arg = argument;
  ucp_listener_h handle = nullptr;
  check_status(ucp_listener_create(worker.get(), &params, &handle), concat("listening on ", host));
  handle_.reset(handle);
  ucp_listener_attr_t attributes{};
  attributes.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
  check_status(ucp_listener_query(handle, &attributes), concat("asking the port of the listener on ", host));
  port_ = attributes.sockaddr.ss_family == AF_INET6
              ? ntohs(reinterpret_cast<const sockaddr_in6&>(attributes.sockaddr).sin6_port)
              : ntohs(reinterpret_cast<const sockaddr_in&>(attributes.sockaddr).sin_port);
}

Endpoint::Endpoint(Worker& worker, const ucp_ep_params_t& params) {
  check_status(ucp_ep_create(worker.get(), &params, &handle_), "making a UCX endpoint");
}

namespace {

ucp_ep_params_t peer_params(ucp_err_handler_cb_t on_error, void* argument) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = on_error;
  params.err_handler.arg = argument;
  return params;
}

}  // namespace

Endpoint Endpoint::connect(Worker& worker, const std::string& host, int port, ucp_err_handler_cb_t on_error,
                           void* argument) {
  const sockaddr_storage address = socket_address(host, port);
  ucp_ep_params_t params = peer_params(on_error, argument);
  params.field_mask |= UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR;
  params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
  params.sockaddr.addr = reinterpret_cast<const sockaddr*>(&address);
  params.sockaddr.addrlen = socket_address_length(address);
  return Endpoint(worker, params);
}

Endpoint Endpoint::accept(Worker& worker, ucp_conn_request_h request, ucp_err_handler_cb_t on_error, void* argument) {
  ucp_ep_params_t params = peer_params(on_error, argument);
  params.field_mask |= UCP_EP_PARAM_FIELD_CONN_REQUEST;
  params.conn_request = request;
  return Endpoint(worker, params);
}

Endpoint::Endpoint(Endpoint&& other) noexcept
    : handle_(std::exchange(other.handle_, nullptr)), closing_(std::move(other.closing_)) {}

Endpoint::~Endpoint() { close(); }

void Endpoint::close() {
  if (handle_ == nullptr) return;
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  params.flags = UCP_EP_CLOSE_FLAG_FORCE;
  void* request = ucp_ep_close_nbx(std::exchange(handle_, nullptr), &params);
  if (UCS_PTR_IS_PTR(request)) closing_.reset(request);  // an error status means that nothing is left to close
}

bool Endpoint::closed() const {
  return handle_ == nullptr && (closing_ == nullptr || ucp_request_check_status(closing_.get()) != UCS_INPROGRESS);
}

std::vector<std::string> Endpoint::lanes() const {
  if (handle_ == nullptr) return {};
  std::vector<ucp_transport_entry_t> entries(16);
  ucp_ep_attr_t attributes{};
  attributes.field_mask = UCP_EP_ATTR_FIELD_TRANSPORTS;
  attributes.transports = {.entries = entries.data(),
                           .num_entries = static_cast<unsigned>(entries.size()),
                           .entry_size = sizeof(ucp_transport_entry_t)};
  if (ucp_ep_query(handle_, &attributes) != UCS_OK) return {};
  std::vector<std::string> names;
  for (unsigned i = 0; i < attributes.transports.num_entries; ++i) {
    if (entries[i].device_name[0] == '\0') continue;  // the connection manager's lane
    std::string name = concat(entries[i].transport_name, "/", entries[i].device_name);
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(std::move(name));
  }
  return names;
}

sockaddr_storage socket_address(const std::string& host, int port) {
  sockaddr_storage address{};
  auto& v4 = reinterpret_cast<sockaddr_in&>(address);
  auto& v6 = reinterpret_cast<sockaddr_in6&>(address);
  if (inet_pton(AF_INET, host.c_str(), &v4.sin_addr) == 1) {
    v4.sin_family = AF_INET;
    v4.sin_port = htons(static_cast<uint16_t>(port));
  } else {
    check(inet_pton(AF_INET6, host.c_str(), &v6.sin6_addr) == 1, "'", host, "' is not a numeric IP address");
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(static_cast<uint16_t>(port));
  }
  return address;
}

socklen_t socket_address_length(const sockaddr_storage& address) {
  return address.ss_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
}

}  // namespace rtp_llm::ucx
