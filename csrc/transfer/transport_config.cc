#include "transfer/transport_config.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <sys/statvfs.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>

#include "tensor/check.h"

namespace rtp_llm {
namespace {

int64_t free_bytes(const std::string& directory) {
  struct statvfs status{};
  if (statvfs(directory.c_str(), &status) != 0) return 0;
  return static_cast<int64_t>(status.f_bavail) * static_cast<int64_t>(status.f_frsize);
}

std::string numeric_host(const sockaddr& address) {
  char text[INET6_ADDRSTRLEN] = "";
  const void* bytes = address.sa_family == AF_INET6
                          ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr)
                          : static_cast<const void*>(&reinterpret_cast<const sockaddr_in&>(address).sin_addr);
  inet_ntop(address.sa_family, bytes, text, sizeof text);
  return text;
}

// The device that has this address; any device of 127.0.0.0/8 is "lo". Empty for a wildcard address.
std::string device_of(const std::string& host) {
  if (host == "0.0.0.0" || host == "::") return "";
  ifaddrs* list = nullptr;
  check(getifaddrs(&list) == 0, "getifaddrs: ", std::strerror(errno));
  std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, freeifaddrs);
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr) continue;
    const int family = entry->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    const std::string own = numeric_host(*entry->ifa_addr);
    if (own == host || (own == "127.0.0.1" && host.starts_with("127."))) return entry->ifa_name;
  }
  throw InvalidArgument(concat("transport listen address ", host, " belongs to no network device of this host"));
}

}  // namespace

TransportMode transport_mode_from_name(const std::string& name) {
  if (name == "auto") return TransportMode::kAuto;
  if (name == "shm") return TransportMode::kSharedMemory;
  if (name == "tcp") return TransportMode::kTcp;
  throw InvalidArgument(concat("transport mode '", name, "' is none of auto, shm, tcp"));
}

TransportSettings transport_settings(const TransportConfig& config,
                                     const std::function<void(const std::string&)>& warn) {
  TransportSettings settings{.ucx = {}, .shared_memory = config.mode != TransportMode::kTcp};
  if (settings.shared_memory) {
    const int64_t room = free_bytes(config.shared_memory_directory);
    if (room < config.min_shared_memory_bytes) {
      warn(concat(config.shared_memory_directory, " has ", room >> 20, " MiB free, the transport needs ",
                  config.min_shared_memory_bytes >> 20, " MiB: KV goes over TCP"));
      settings.shared_memory = false;
    }
  }
  auto& ucx = settings.ucx;
  ucx["TCP_TX_SEG_SIZE"] = "256K";
  ucx["TCP_RX_SEG_SIZE"] = "256K";
  if (settings.shared_memory) {
    ucx["TLS"] = "posix,self,tcp";
    ucx["POSIX_ERROR_HANDLING"] = "y";  // without it, error mode PEER drops shared memory silently
    ucx["POSIX_FIFO_SIZE"] = "1024";    // 256 collapses under contention
    ucx["POSIX_SEG_SIZE"] = "32K";      // 64K breaks
    ucx["POSIX_DIR"] = config.shared_memory_directory;
  } else {
    ucx["TLS"] = "self,tcp";
  }
  const std::string device = config.net_device.empty() ? device_of(config.listen_host) : config.net_device;
  if (!device.empty()) ucx["NET_DEVICES"] = device;
  for (const auto& [name, value] : config.ucx_settings) ucx[name] = value;
  for (const auto& [name, value] : ucx) {
    const char* environment = std::getenv(concat("UCX_", name).c_str());
    if (environment != nullptr && value != environment)
      warn(concat("UCX_", name, "=", environment, " of the environment is overridden by ", value,
                  ": set it in the transport's ucx_settings"));
  }
  return settings;
}

std::string host_identity() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  file >> id;
  return id.empty() ? "unknown" : id;
}

}  // namespace rtp_llm
