// TransportConfig: how KV travels between workers, and the UCX settings that it means.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

namespace rtp_llm {

enum class TransportMode : uint8_t {
  kAuto,          // shared memory with peers that share this host's, TCP with the others
  kSharedMemory,  // the same, but a peer without shared memory is worth a warning
  kTcp,           // TCP only
};

struct TransportConfig {
  TransportMode mode = TransportMode::kAuto;
  // UCX has no authentication and over TCP no bounds checks: whoever reaches this address can write to this process.
  std::string listen_host = "127.0.0.1";
  std::string advertise_host;  // what peers connect to; empty: listen_host
  std::string net_device;      // "eth0"; empty: the device that listen_host belongs to
  std::string shared_memory_directory = "/dev/shm";
  int64_t min_shared_memory_bytes = int64_t{128} << 20;  // a side maps about 40 MiB; peers share the room
  double hello_timeout_s = 5;                            // an endpoint that has not said its nonce by then is closed
  // UCX's own settings, without the UCX_ prefix; they win over ours, and ours over the environment's UCX_*.
  std::map<std::string, std::string> ucx_settings;
};

// "auto", "shm", "tcp". Throws InvalidArgument naming any other value.
TransportMode transport_mode_from_name(const std::string& name);

// The settings for UCX, measured (docs/transfer.md). Downgrades to TCP with a warning when shared memory has too
// little room, and warns of each UCX_* variable of the environment that is overridden. Throws InvalidArgument if
// listen_host belongs to no device.
struct TransportSettings {
  std::map<std::string, std::string> ucx;
  bool shared_memory = false;
};
TransportSettings transport_settings(const TransportConfig& config,
                                     const std::function<void(const std::string&)>& warn);

// What identifies this host's memory: equal for two processes that should see each other's shared memory.
std::string host_identity();

}  // namespace rtp_llm
