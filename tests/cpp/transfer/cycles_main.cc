// Connects, sends and closes by force N times against a second process, and prints what both hold then:
// {"cycles": …, "anon_kib": [here, there], "shared_kib": …, "fds": …} after each quarter of the cycles.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "station.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

namespace {

const WorkerKey kHere{"here", 1}, kThere{"there", 2};

// Private memory: the pages of UCX's shared segments are touched one after the other and counted apart.
long rss_kib(pid_t pid, const std::string& kind) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(kind + ":")) return std::stol(line.substr(kind.size() + 1));
  return -1;
}

long num_fds(pid_t pid) {
  const std::filesystem::directory_iterator entries("/proc/" + std::to_string(pid) + "/fd");
  return std::distance(begin(entries), end(entries));
}

template <class T>
void pass(int fd, T value) {
  if (write(fd, &value, sizeof value) != sizeof value) _exit(2);
}
template <class T>
T take(int fd) {
  T value{};
  if (read(fd, &value, sizeof value) != sizeof value) _exit(0);
  return value;
}

// Admits one sender per byte on `in`; answers with the nonce.
[[noreturn]] void serve(const TransportConfig& config, int in, int out) {
  Station station(config, 8 << 20);
  station.live = {0};
  char address[256] = {};
  std::snprintf(address, sizeof address, "%s", station.transport.address().c_str());
  if (write(out, address, sizeof address) < 0) _exit(2);
  for (;;) {
    station.run_until([] { return false; }, 3600, in);
    take<char>(in);
    pass(out, station.transport.expect(kHere));
    station.events.clear();
  }
}

}  // namespace

int main(int, char** argv) {
  TransportConfig config;
  config.mode = transport_mode_from_name(argv[1]);
  const int cycles = std::stoi(argv[2]);
  int to_child[2], to_parent[2];
  if (pipe(to_child) != 0 || pipe(to_parent) != 0) return 2;
  const pid_t child = fork();
  if (child == 0) {
    close(to_child[1]);
    serve(config, to_child[0], to_parent[1]);
  }
  Station station(config, 8 << 20);
  char address[256];
  if (read(to_parent[0], address, sizeof address) < 0) return 2;
  for (int cycle = 1; cycle <= cycles; ++cycle) {
    pass(to_child[1], 'n');
    station.transport.connect(kThere, address, take<uint64_t>(to_parent[0]));
    if (!station.transport.send(kThere, {.grant = 0}, station.pieces_of(0, 300000), 7)) return 3;
    if (!station.run_until([&] { return station.count("sent 7") == 1; })) return 4;
    station.transport.close_by_force(Direction::kSend, kThere);
    if (!station.run_until([&] { return station.count("closed-out") == 1; })) return 5;
    station.events.clear();
    if (cycle % (cycles / 4) == 0)
      std::printf("{\"cycles\": %d, \"anon_kib\": [%ld, %ld], \"shared_kib\": [%ld, %ld], \"fds\": [%ld, %ld]}\n",
                  cycle, rss_kib(getpid(), "RssAnon"), rss_kib(child, "RssAnon"), rss_kib(getpid(), "RssShmem"),
                  rss_kib(child, "RssShmem"), num_fds(getpid()), num_fds(child));
  }
  close(to_child[1]);
  waitpid(child, nullptr, 0);
}
