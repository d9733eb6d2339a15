#include "transfer/transport.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "check.h"
#include "station.h"
#include "transfer/ucx.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

namespace {

const WorkerKey kHere{"here", 11};
const WorkerKey kThere{"there", 22};

TransportConfig config_of(const std::string& mode) {
  TransportConfig config;
  config.mode = transport_mode_from_name(mode);
  config.hello_timeout_s = kHangS;
  return config;
}

// transfer_peer as a child process.
class Peer {
 public:
  explicit Peer(const std::string& mode, const std::string& shared_memory_directory = "/dev/shm") {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) throw Unavailable("pipe");
    const std::string program = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "transfer_peer";
    pid_ = fork();
    if (pid_ == 0) {
      dup2(in[0], 0);
      dup2(out[1], 1);
      execl(program.c_str(), program.c_str(), mode.c_str(), shared_memory_directory.c_str(), nullptr);
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    in_ = in[1];
    out_ = out[0];
  }
  ~Peer() {
    signal_(SIGKILL);
    signal_(SIGCONT);
    waitpid(pid_, nullptr, 0);
    close(in_);
    close(out_);
  }

  void signal_(int number) { kill(pid_, number); }
  void tell(const std::string& line) {
    const std::string text = line + "\n";
    if (write(in_, text.data(), text.size()) < 0) throw Unavailable("the peer is gone");
  }
  // The next line that starts with `word`, while `station` keeps running.
  std::string hear(Station& station, const std::string& word) {
    std::string answer;
    const double end = now_s() + kHangS;
    while (now_s() < end) {
      for (size_t at; (at = pending_.find('\n')) != std::string::npos;) {
        const std::string line = pending_.substr(0, at);
        pending_.erase(0, at + 1);
        if (line.starts_with(word)) return line.substr(std::min(line.size(), word.size() + 1));
      }
      station.run_until([] { return false; }, end - now_s(), out_);
      char buffer[4096];
      pollfd ready{out_, POLLIN, 0};
      if (poll(&ready, 1, 0) == 0) continue;
      const ssize_t count = read(out_, buffer, sizeof buffer);
      if (count <= 0) break;
      pending_.append(buffer, static_cast<size_t>(count));
    }
    throw Unavailable("the peer never said '" + word + "'");
  }
  // Connects the child to the station as kThere.
  void connect_to(Station& station) {
    tell(concat("connect here 11 ", station.transport.expect(kThere), " ", station.transport.address()));
  }

 private:
  pid_t pid_ = 0;
  int in_ = -1, out_ = -1;
  std::string pending_;
};

bool holds(Station& station, uint64_t grant, uint64_t bytes, uint64_t seed) {
  uint64_t i = 0;
  for (const Piece& piece : station.pieces_of(grant, bytes))
    for (uint64_t j = 0; j < piece.bytes; ++j)
      if (static_cast<uint8_t*>(piece.data)[j] != pattern(seed, i++)) return false;
  return true;
}

bool untouched(const Station& station, uint64_t from, uint64_t to) {
  const uint8_t* const begin = station.memory.data() + from;
  return *begin == 0xee && std::memcmp(begin, begin + 1, to - from - 1) == 0;  // each is equal to the next
}

void bytes_land(const std::string& mode) {
  Station station(config_of(mode), 32 << 20);
  Peer peer(mode);
  peer.connect_to(station);
  // Eager, its border, just over it, and rendezvous.
  const uint64_t sizes[] = {1, 5000, 64 << 10, (64 << 10) + 1, 300000, 3 << 20};
  for (uint64_t grant = 0; grant < 6; ++grant) {
    station.live.insert(grant);
    peer.tell(concat("send here 11 ", grant, " ", sizes[grant], " ", 40 + grant));
  }
  CHECK(station.run_until([&] { return station.count("received ") == 6; }));
  for (uint64_t grant = 0; grant < 6; ++grant) {
    CHECK(holds(station, grant, sizes[grant], 40 + grant));
    CHECK(untouched(station, grant * station.slot_bytes + sizes[grant], (grant + 1) * station.slot_bytes));
    peer.hear(station, concat("sent ", grant));
  }
  const TransportCounts counts = station.transport.counts();
  CHECK_EQ(counts.receives_outstanding, 0);
  CHECK_EQ(counts.messages_refused, 0);
  const std::string lane = mode == "tcp" ? "tcp" : "posix";
  CHECK_EQ(counts.lanes.at(lane).messages_received, 6);
  CHECK_EQ(counts.lanes.at(lane).bytes_received, 1 + 5000 + (128 << 10) + 1 + 300000 + (3 << 20));
  CHECK(station.warnings.empty());
}

}  // namespace

TEST(bytes_land_in_the_accepted_pieces_over_shared_memory) { bytes_land("shm"); }
TEST(bytes_land_in_the_accepted_pieces_over_tcp) { bytes_land("tcp"); }

namespace {

void refused_message_is_dropped(const std::string& mode) {
  Station station(config_of(mode), 32 << 20);
  Peer peer(mode);
  peer.connect_to(station);
  station.live = {2};
  peer.tell("send here 11 0 1000 1");
  peer.tell("send here 11 1 2000000 1");
  peer.tell("send here 11 2 2000000 1");
  CHECK(station.run_until([&] { return station.count("received ") == 1; }));
  peer.hear(station, "sent 2");
  CHECK(untouched(station, 0, 2 * station.slot_bytes));
  CHECK(holds(station, 2, 2000000, 1));
  CHECK_EQ(station.transport.counts().messages_refused, 2);
}

}  // namespace

TEST(a_refused_message_is_dropped_and_its_send_completes_over_shared_memory) { refused_message_is_dropped("shm"); }
TEST(a_refused_message_is_dropped_and_its_send_completes_over_tcp) { refused_message_is_dropped("tcp"); }

TEST(an_unknown_nonce_closes_the_endpoint) {
  Station station(config_of("shm"), 16 << 20);
  Peer peer("shm");
  station.live = {0};
  const uint64_t nonce = station.transport.expect(kThere);
  peer.tell(concat("connect here 11 ", nonce + 1, " ", station.transport.address()));
  peer.tell("send here 11 0 2000000 1");
  peer.hear(station, "closed-out here");
  CHECK_EQ(station.count("received "), 0);
  CHECK_EQ(station.transport.counts().endpoints_rejected, 1);
  CHECK(station.run_until([&] { return station.transport.counts().inbound == 0; }));
  CHECK(untouched(station, 0, station.memory.size()));
}

TEST(a_nonce_is_good_once) {
  Station station(config_of("tcp"), 16 << 20);
  Peer peer("tcp");
  const uint64_t nonce = station.transport.expect(kThere);
  const std::string connect = concat("connect here 11 ", nonce, " ", station.transport.address());
  station.live = {0, 1};
  peer.tell(connect);
  peer.tell("send here 11 0 100 1");
  CHECK(station.run_until([&] { return station.count("received 0") == 1; }));
  peer.tell(connect);  // replaces its endpoint
  peer.tell("send here 11 1 2000000 1");
  CHECK(station.run_until([&] { return station.transport.counts().endpoints_rejected == 1; }));
  CHECK(station.run_until([&] { return station.transport.counts().inbound == 0; }));
  CHECK_EQ(station.count("received 1"), 0);
}

TEST(a_peer_that_comes_back_on_a_new_endpoint_is_not_heard_on_the_old_one) {
  Station station(config_of("tcp"), 16 << 20);
  Peer old("tcp"), again("tcp");  // the old one doesn't know
  station.live = {0, 1, 2};
  old.connect_to(station);
  old.tell("send here 11 0 100 1");
  CHECK(station.run_until([&] { return station.count("received 0") == 1; }));
  again.connect_to(station);
  again.tell("send here 11 1 100 1");
  CHECK(station.run_until([&] { return station.count("closed-in there") == 1; }));
  CHECK_EQ(station.closed, std::vector<std::string>{"the peer came back on a new endpoint"});
  old.hear(station, "closed-out here");
  old.tell("send here 11 2 100 1");
  old.hear(station, "nowhere");
  CHECK(station.run_until([&] { return station.count("received 1") == 1; }));
  CHECK_EQ(station.count("received 2"), 0);
  CHECK_EQ(station.transport.counts().inbound, 1);
}

// A worker of UCX alone, which connects to a station and says nothing.
struct Stranger {
  ucx::Endpoint connect(const Station& station) {
    std::istringstream address(station.transport.address());
    std::string host;
    int port = 0;
    address >> host >> port;
    return ucx::Endpoint::connect(worker, host, port, [](void*, ucp_ep_h, ucs_status_t) {}, nullptr);
  }
  template <class Condition>
  bool move_until(Station& station, Condition holds) {
    for (const double end = now_s() + kHangS; !holds() && now_s() < end;) {
      worker.progress();
      station.transport.progress(now_s());
    }
    return holds();
  }

  ucx::Context context{{{"TLS", "tcp,self"}, {"NET_DEVICES", "lo"}}};
  ucx::Worker worker{context};
};

TEST(an_endpoint_that_never_says_a_nonce_is_closed) {
  TransportConfig config = config_of("tcp");
  config.hello_timeout_s = 0.1;
  Station station(config, 1 << 20);
  Stranger stranger;
  const ucx::Endpoint silent = stranger.connect(station);
  const auto came = [&] {
    const TransportCounts counts = station.transport.counts();
    return counts.inbound > 0 || counts.endpoints_rejected > 0;
  };
  CHECK(stranger.move_until(station, came));
  CHECK(station.run_until([&] { return station.transport.counts().endpoints_rejected == 1; }));
  CHECK(station.run_until([&] { return station.transport.counts().inbound == 0; }));
  CHECK(station.run_until([&] { return !station.warnings.empty(); }));
  CHECK_EQ(station.warnings[0], "an endpoint was closed: no nonce within 0.1 s");
}

TEST(an_endpoint_ends_with_who_holds_it) {
  TransportConfig config = config_of("tcp");
  config.hello_timeout_s = 2 * kHangS;  // not for its silence
  Station station(config, 1 << 20);
  Stranger stranger;
  {
    const ucx::Endpoint brief = stranger.connect(station);
    CHECK(stranger.move_until(station, [&] { return station.transport.counts().inbound == 1; }));
  }
  CHECK(stranger.move_until(station, [&] { return station.transport.counts().inbound == 0; }));
}

namespace {

void killed_sender(const std::string& mode) {
  TransportConfig config = config_of(mode);
  config.ucx_settings["KEEPALIVE_INTERVAL"] = "inf";  // the death is heard, not found by asking now and then
  Station station(config, 64 << 20);
  Peer peer(mode);
  peer.connect_to(station);
  for (uint64_t grant = 0; grant < 8; ++grant) {
    station.live.insert(grant);
    peer.tell(concat("send here 11 ", grant, " ", 4 << 20, " 0"));
  }
  CHECK(station.run_until([&] { return station.count("received ") >= 2; }));
  peer.signal_(SIGKILL);
  CHECK(station.run_until([&] { return station.count("closed-in there") == 1; }));
  CHECK_EQ(station.transport.counts().receives_outstanding, 0);
  CHECK_EQ(station.untold_at_close, 0);
  CHECK_EQ(station.transport.counts().inbound, 0);
}

void killed_receiver(const std::string& mode) {
  Station station(config_of(mode), 64 << 20);
  Peer peer(mode);
  peer.tell("address");
  const std::string address = peer.hear(station, "address");
  peer.tell("expect here 11");
  station.transport.connect(kThere, address, std::stoull(peer.hear(station, "nonce")));
  peer.tell("live 0");
  KvMessageHeader header{.grant = 0};
  REQUIRE(station.transport.send(kThere, header, station.pieces_of(0, 1 << 20), 0));
  peer.hear(station, "received 0");
  peer.signal_(SIGSTOP);
  for (uint64_t grant = 0; grant < 8; ++grant)
    REQUIRE(station.transport.send(kThere, {.grant = grant}, station.pieces_of(grant, 4 << 20), 100 + grant));
  peer.signal_(SIGKILL);
  CHECK(station.run_until([&] { return station.count("closed-out there") == 1; }));
  CHECK_EQ(station.count("unsent 10"), 8);
  CHECK_EQ(station.transport.counts().sends_outstanding, 0);
  CHECK(!station.transport.send(kThere, header, station.pieces_of(0, 1), 1));
}

}  // namespace

// As of a receiver that is killed while it is met: for some milliseconds its memory is gone and its sockets stand.
// UCX 1.22 sends what it has held back also on a lane that it failed to make.
TEST(a_receiver_whose_memory_is_gone_when_it_is_met_ends_the_sends) {
  const std::filesystem::path directory = std::filesystem::path("/dev/shm") / concat("rtp_llm_test_", getpid());
  std::filesystem::create_directory(directory);
  setenv("UCX_POSIX_USE_PROC_LINK", "n", 1);  // memory has names there
  TransportConfig config = config_of("shm");
  config.shared_memory_directory = directory;
  {
    Peer peer("shm", directory);
    Station nobody(config_of("tcp"), 1);
    peer.tell("address");
    const std::string address = peer.hear(nobody, "address");
    peer.tell("expect here 11");
    const uint64_t nonce = std::stoull(peer.hear(nobody, "nonce"));
    std::vector<std::filesystem::path> memory;
    for (const auto& file : std::filesystem::directory_iterator(directory)) memory.push_back(file.path());
    REQUIRE(!memory.empty());
    for (const std::filesystem::path& file : memory) {
      std::filesystem::remove(file);
      REQUIRE(mkfifo(file.c_str(), 0600) == 0);  // can be opened, not mapped
    }
    Station station(config, 1 << 20);
    station.transport.connect(kThere, address, nonce);
    REQUIRE(station.transport.send(kThere, {.grant = 0}, station.pieces_of(0, 100), 0));
    CHECK(station.run_until([&] { return station.count("closed-out there") == 1; }));
    CHECK_EQ(station.count("unsent 0"), 1);
    CHECK_EQ(station.transport.counts().sends_outstanding, 0);
  }
  unsetenv("UCX_POSIX_USE_PROC_LINK");
  std::filesystem::remove_all(directory);
}

TEST(a_killed_sender_ends_its_endpoint_and_receives_over_shared_memory) { killed_sender("shm"); }
TEST(a_killed_sender_ends_its_endpoint_and_receives_over_tcp) { killed_sender("tcp"); }
TEST(a_killed_receiver_ends_the_sends_over_shared_memory) { killed_receiver("shm"); }
TEST(a_killed_receiver_ends_the_sends_over_tcp) { killed_receiver("tcp"); }

namespace {

// The sender is stopped in the middle of its writes; after the fence nothing may change here, though it wakes up.
void stopped_sender(const std::string& mode) {
  int most_outstanding = 0;
  for (int round = 0; round < 5; ++round) {
    Station station(config_of(mode), 64 << 20);
    Peer peer(mode);
    peer.connect_to(station);
    for (uint64_t grant = 0; grant < 12; ++grant) {
      station.live.insert(grant);
      peer.tell(concat("send here 11 ", grant, " ", 4 << 20, " 0"));
    }
    CHECK(station.run_until([&] { return station.count("received ") > round; }));
    peer.signal_(SIGSTOP);
    station.run_until([] { return false; }, 0.02);
    const int outstanding = station.transport.counts().receives_outstanding;
    CHECK_EQ(station.untold.size(), outstanding);
    most_outstanding = std::max(most_outstanding, outstanding);
    REQUIRE(station.transport.close_by_force(Direction::kReceive, kThere));
    CHECK(station.run_until([&] { return station.count("closed-in there") == 1; }));
    CHECK_EQ(station.transport.counts().receives_outstanding, 0);
    CHECK_EQ(station.untold_at_close, 0);
    std::fill(station.memory.begin(), station.memory.end(), 0xee);
    peer.signal_(SIGCONT);
    station.run_until([] { return false; }, 0.2);
    CHECK(untouched(station, 0, station.memory.size()));
    peer.hear(station, "closed-out here");
  }
  CHECK(most_outstanding > 0);  // else nothing was fenced
}

}  // namespace

TEST(nothing_is_written_after_a_forced_close_of_a_stopped_sender_over_shared_memory) { stopped_sender("shm"); }
TEST(nothing_is_written_after_a_forced_close_of_a_stopped_sender_over_tcp) { stopped_sender("tcp"); }

TEST(an_idle_transport_sleeps) {
  Station station(config_of("shm"), 16 << 20);
  Peer peer("shm");
  peer.connect_to(station);
  station.live = {0};
  peer.tell("send here 11 0 1000000 1");
  CHECK(station.run_until([&] { return station.count("received ") == 1; }));
  station.run_until([] { return false; }, 0.3);
  station.waits = 0;
  station.run_until([] { return false; }, 0.5);
  CHECK(station.waits <= 5);
}

TEST(too_little_shared_memory_is_a_warning_and_means_tcp) {
  TransportConfig config = config_of("shm");
  config.min_shared_memory_bytes = int64_t{1} << 60;
  Station station(config, 1 << 20);
  REQUIRE(station.warnings.size() == 1);
  CHECK(station.warnings[0].find("KV goes over TCP") != std::string::npos);
  CHECK(station.transport.address().ends_with(" tcp"));
}

TEST(shared_memory_that_the_peer_lacks_is_a_warning_that_names_the_lanes) {
  Station station(config_of("shm"), 16 << 20);
  Peer peer("tcp");
  peer.tell("address");
  const std::string address = peer.hear(station, "address");
  peer.tell("expect here 11");
  station.transport.connect(kThere, address, std::stoull(peer.hear(station, "nonce")));
  peer.tell("live 0");
  REQUIRE(station.transport.send(kThere, {.grant = 0}, station.pieces_of(0, 1 << 20), 0));
  peer.hear(station, "received 0");
  CHECK(station.run_until([&] { return station.warnings.size() == 1; }));
  CHECK(station.warnings[0].find("its lanes are tcp/lo") != std::string::npos);
}

TEST(bad_transport_settings_are_named) {
  CHECK_THROWS_WITH(transport_mode_from_name("rdma"), InvalidArgument, "'rdma'");
  TransportConfig config;
  config.listen_host = "203.0.113.77";
  CHECK_THROWS_WITH(Station(config, 1), InvalidArgument, "203.0.113.77");
  config = {};
  config.ucx_settings["TLS"] = "nosuch";
  CHECK_THROWS(Station(config, 1), Unavailable);
}
