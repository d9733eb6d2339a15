#include "transfer/transport_config.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "check.h"
#include "tensor/check.h"
#include "transfer/transport_address.h"

using namespace rtp_llm;

namespace {

struct Asked {
  template <class Change>
  explicit Asked(Change change) {
    TransportConfig config;
    change(config);
    settings = transport_settings(config, [this](const std::string& text) { warnings.push_back(text); });
  }

  // Empty: not set.
  std::string operator[](const std::string& name) const {
    const auto found = settings.ucx.find(name);
    return found == settings.ucx.end() ? "" : found->second;
  }

  bool warned(const std::string& text) const {
    return std::ranges::any_of(warnings, [&](const auto& one) { return one.find(text) != std::string::npos; });
  }

  std::vector<std::string> warnings;
  TransportSettings settings;
};

}  // namespace

TEST(each_mode_has_its_transports) {
  for (const char* mode : {"auto", "shm"}) {
    const Asked asked([&](TransportConfig& config) {
      config.mode = transport_mode_from_name(mode);
      config.shared_memory_directory = "/tmp";
      config.min_shared_memory_bytes = 1;
    });
    CHECK(asked.settings.shared_memory);
    CHECK_EQ(asked["TLS"], "posix,self,tcp");
    CHECK_EQ(asked["POSIX_ERROR_HANDLING"], "y");
    CHECK_EQ(asked["POSIX_DIR"], "/tmp");
    CHECK(!asked.warned("KV goes over TCP"));
  }
  const Asked asked([](TransportConfig& config) {
    config.mode = transport_mode_from_name("tcp");
    config.shared_memory_directory = "/nowhere";
  });
  CHECK(!asked.settings.shared_memory);
  CHECK_EQ(asked["TLS"], "self,tcp");
  CHECK_EQ(asked["POSIX_DIR"], "");
  CHECK(!asked.warned("KV goes over TCP"));
}

TEST(a_directory_without_room_or_that_is_none_means_tcp_and_a_warning_with_both_numbers) {
  const Asked none([](TransportConfig& config) { config.shared_memory_directory = "/nowhere"; });
  CHECK(none.warned("/nowhere has 0 MiB free, the transport needs 128 MiB: KV goes over TCP"));
  CHECK_EQ(none["TLS"], "self,tcp");
  const Asked little([](TransportConfig& config) {
    config.shared_memory_directory = "/tmp";
    config.min_shared_memory_bytes = int64_t{1} << 60;
  });
  CHECK(little.warned("KV goes over TCP"));
  CHECK(!little.settings.shared_memory);
}

TEST(the_device_is_that_of_the_address_unless_one_is_named) {
  const auto device = [](const char* listen_host, const char* net_device = "") {
    return Asked([&](TransportConfig& config) {
      config.mode = TransportMode::kTcp;
      config.listen_host = listen_host;
      config.net_device = net_device;
    })["NET_DEVICES"];
  };
  CHECK_EQ(device("127.0.0.1"), "lo");
  CHECK_EQ(device("127.0.0.9"), "lo");
  CHECK_EQ(device("0.0.0.0"), "");  // any
  CHECK_EQ(device("::"), "");
  CHECK_EQ(device("203.0.113.77", "eth7"), "eth7");
  CHECK_THROWS_WITH(device("203.0.113.77"), InvalidArgument, "203.0.113.77 belongs to no network device");
}

TEST(given_settings_win_over_ours_and_ours_over_the_environments_with_a_warning) {
  setenv("UCX_TCP_TX_SEG_SIZE", "8K", 1);
  setenv("UCX_TCP_RX_SEG_SIZE", "256K", 1);  // the same: no warning
  const Asked asked([](TransportConfig& config) {
    config.mode = TransportMode::kTcp;
    config.ucx_settings = {{"TLS", "tcp"}, {"RNDV_THRESH", "1K"}};
  });
  unsetenv("UCX_TCP_TX_SEG_SIZE");
  unsetenv("UCX_TCP_RX_SEG_SIZE");
  CHECK_EQ(asked["TLS"], "tcp");
  CHECK_EQ(asked["RNDV_THRESH"], "1K");
  CHECK_EQ(asked["TCP_TX_SEG_SIZE"], "256K");
  CHECK(asked.warned("UCX_TCP_TX_SEG_SIZE=8K of the environment is overridden by 256K"));
  CHECK(!asked.warned("UCX_TCP_RX_SEG_SIZE"));
}

TEST(a_host_is_known_by_its_boot) {
  std::string id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
  CHECK_EQ(host_identity(), id);
}

TEST(an_address_is_read_as_it_was_written) {
  const TransportAddress address{.host = "10.0.0.7", .port = 65535, .host_identity = "boot-1", .memory = "posix"};
  CHECK_EQ(address.text(), "10.0.0.7 65535 boot-1 posix");
  const TransportAddress read = TransportAddress::parse(address.text());
  CHECK_EQ(read.host, "10.0.0.7");
  CHECK_EQ(read.port, 65535);
  CHECK_EQ(read.host_identity, "boot-1");
  CHECK_EQ(read.memory, "posix");
  CHECK_EQ(TransportAddress::parse("h 1 b tcp").port, 1);
  for (const char* text : {"", "h 1 b", "h 0 b tcp", "h -1 b tcp", "h 65536 b tcp", "h port b tcp"})
    CHECK_THROWS_WITH(TransportAddress::parse(text), InvalidArgument,
                      concat("'", text, "' is not a transport address"));
}
