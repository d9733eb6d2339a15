// Owners of UCX's C objects. The only header that includes UCX; included by this room's .cc files alone.
//
// Each class owns one handle and closes it when destroyed; members of a Worker must die before it. Nothing here
// decides anything: transport.h does.
//
// Thread rule: a Worker and what was made from it are used by one thread at a time.
#pragma once

#include <sys/socket.h>
#include <ucp/api/ucp.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tensor/check.h"

namespace rtp_llm::ucx {

// A UCX call failed; the message ends with UCX's own text for the status.
class UcxError : public Unavailable {
 public:
  UcxError(const std::string& what, ucs_status_t status);
  ucs_status_t status() const { return status_; }

 private:
  ucs_status_t status_;
};

// Throws UcxError(what: status text) unless status is UCS_OK.
void check_status(ucs_status_t status, const std::string& what);

// Settings without the UCX_ prefix: {"TLS", "posix,self,tcp"}.
using Settings = std::map<std::string, std::string>;

class Context {
 public:
  // Features: active messages and wake-up. Throws UcxError naming the setting that UCX refuses.
  explicit Context(const Settings& settings);
  ucp_context_h get() const { return handle_.get(); }

 private:
  struct Close {
    void operator()(ucp_context_h handle) const { ucp_cleanup(handle); }
  };
  std::unique_ptr<ucp_context, Close> handle_;
};

class Worker {
 public:
  explicit Worker(Context& context);
  ucp_worker_h get() const { return handle_.get(); }

  // True if anything happened; callbacks run inside.
  bool progress() { return ucp_worker_progress(handle_.get()) != 0; }
  // Readable when progress() has work, once arm() returned true.
  int event_fd() const { return event_fd_; }
  // False: there is work already, call progress() until it returns false.
  bool arm();
  void set_am_handler(unsigned id, ucp_am_recv_callback_t callback, void* argument);

 private:
  struct Close {
    void operator()(ucp_worker_h handle) const { ucp_worker_destroy(handle); }
  };
  std::unique_ptr<ucp_worker, Close> handle_;
  int event_fd_ = -1;
};

// Listens on a port that the kernel picks.
class Listener {
 public:
  Listener(Worker& worker, const std::string& host, ucp_listener_conn_callback_t on_request, void* argument);
  int port() const { return port_; }
  void reject(ucp_conn_request_h request) { ucp_listener_reject(handle_.get(), request); }

 private:
  struct Close {
    void operator()(ucp_listener_h handle) const { ucp_listener_destroy(handle); }
  };
  std::unique_ptr<ucp_listener, Close> handle_;
  int port_ = 0;
};

// A request that UCX handed out: freed when destroyed. It must have completed.
struct FreeRequest {
  void operator()(void* request) const { ucp_request_free(request); }
};
using Request = std::unique_ptr<void, FreeRequest>;

// An endpoint in error mode PEER. Its owner calls close() and progresses until closed() before destroying it; an
// endpoint that is destroyed open is closed by force without waiting.
class Endpoint {
 public:
  static Endpoint connect(Worker& worker, const std::string& host, int port, ucp_err_handler_cb_t on_error,
                          void* argument);
  static Endpoint accept(Worker& worker, ucp_conn_request_h request, ucp_err_handler_cb_t on_error, void* argument);
  Endpoint(Endpoint&& other) noexcept;
  Endpoint& operator=(Endpoint&&) = delete;
  ~Endpoint();

  ucp_ep_h get() const { return handle_; }
  // Starts a forced close; no send may follow.
  void close();
  // UCX has let go of the endpoint. Receives that it had begun may still complete: count them apart.
  bool closed() const;
  // "posix/memory", "tcp/lo": the lanes in use, without repeats. Empty before the connection stands.
  std::vector<std::string> lanes() const;

 private:
  Endpoint(Worker& worker, const ucp_ep_params_t& params);

  ucp_ep_h handle_ = nullptr;
  Request closing_;
};

// Numeric IPv4 or IPv6 host. Throws InvalidArgument naming it.
sockaddr_storage socket_address(const std::string& host, int port);
socklen_t socket_address_length(const sockaddr_storage& address);

}  // namespace rtp_llm::ucx
