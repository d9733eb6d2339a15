// GB/s of KV messages between two processes, over shared memory and TCP, beside one memcpy and a plain socket in the
// same run. Prints one JSON object. benchmarks/transfer_bench.py runs it and explains.
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <vector>

#include "transfer/transport.h"

using namespace rtp_llm;

namespace {

constexpr int kRepeats = 5;
constexpr int kWindow = 8;
constexpr uint64_t kSlotBytes = 8 << 20;
constexpr uint64_t kPieceBytes = 64 << 10;
const WorkerKey kSender{"sender", 1}, kReceiver{"receiver", 2};

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void put(int fd, const void* data, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t count = write(fd, static_cast<const char*>(data) + done, bytes - done);
    if (count <= 0) _exit(2);
    done += static_cast<size_t>(count);
  }
}

void get(int fd, void* data, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t count = read(fd, static_cast<char*>(data) + done, bytes - done);
    if (count <= 0) _exit(2);
    done += static_cast<size_t>(count);
  }
}

TransportConfig config_of(TransportMode mode) {
  TransportConfig config;
  config.mode = mode;
  return config;
}

// Both sides: memory of kWindow slots; a message uses the slot of its grant, in pieces, as blocks of a pool would lie.
class Side : public TransportListener {
 public:
  explicit Side(TransportMode mode) : memory_(kWindow * kSlotBytes, 1), transport(config_of(mode), *this) {}

  std::vector<Piece> pieces(uint64_t slot, uint64_t bytes) {
    std::vector<Piece> list;
    for (uint64_t done = bytes; done > 0; done -= std::min(done, kPieceBytes)) {
      const uint64_t part = std::min(done, kPieceBytes);
      list.push_back({memory_.data() + slot * kSlotBytes + done - part, part});
    }
    return list;
  }
  std::optional<Acceptance> accept(const WorkerKey&, const KvMessageHeader& header, uint64_t bytes) override {
    return Acceptance{pieces(header.grant, bytes), header.grant};
  }
  void on_received(uint64_t, bool landed) override { received += landed; }
  void on_sent(uint64_t tag, bool sent) override {
    if (!sent) _exit(3);
    free_slots.push_back(tag);
  }
  void on_closed(Direction, const WorkerKey&, const std::string&) override { closed = true; }
  void on_warning(const std::string& text) override { std::fprintf(stderr, "warning: %s\n", text.c_str()); }

  void run_until(const std::function<bool()>& done) {
    while (!done()) {
      if (transport.progress(now_s()) || !transport.arm()) continue;
      pollfd fd{transport.event_fd(), POLLIN, 0};
      poll(&fd, 1, 100);
    }
  }

  uint64_t received = 0;
  bool closed = false;
  std::vector<uint64_t> free_slots;

 private:
  std::vector<uint8_t> memory_;

 public:
  Transport transport;
};

struct Rates {
  double low, median, high;
};

Rates rates_of(std::vector<double> gb_s) {
  std::sort(gb_s.begin(), gb_s.end());
  return {gb_s.front(), gb_s[gb_s.size() / 2], gb_s.back()};
}

std::vector<double> repeat(uint64_t bytes, const std::function<void()>& work) {
  std::vector<double> gb_s;
  work();  // warm
  for (int i = 0; i < kRepeats; ++i) {
    const double begin = now_s();
    work();
    gb_s.push_back(static_cast<double>(bytes) / (now_s() - begin) / 1e9);
  }
  return gb_s;
}

// Child: receives until the sender closes; says "done" once per `messages`.
[[noreturn]] void receive(TransportMode mode, int in, int out, uint64_t messages) {
  Side side(mode);
  char address[256] = {};
  std::snprintf(address, sizeof address, "%s", side.transport.address().c_str());
  const uint64_t nonce = side.transport.expect(kSender);
  put(out, address, sizeof address);
  put(out, &nonce, sizeof nonce);
  for (uint64_t round = 1; round <= kRepeats + 1; ++round) {
    side.run_until([&] { return side.received == round * messages; });
    put(out, "d", 1);
  }
  char end;
  get(in, &end, 1);
  _exit(0);
}

Rates message_rates(TransportMode mode, uint64_t message_bytes, uint64_t total) {
  const uint64_t messages = total / message_bytes;
  int to_child[2], to_parent[2];
  if (pipe(to_child) != 0 || pipe(to_parent) != 0) _exit(2);
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) receive(mode, to_child[0], to_parent[1], messages);
  Side side(mode);
  char address[256];
  uint64_t nonce;
  get(to_parent[0], address, sizeof address);
  get(to_parent[0], &nonce, sizeof nonce);
  side.transport.connect(kReceiver, address, nonce);
  for (uint64_t slot = 0; slot < kWindow; ++slot) side.free_slots.push_back(slot);
  const std::vector<double> gb_s = repeat(messages * message_bytes, [&] {
    for (uint64_t i = 0; i < messages; ++i) {
      side.run_until([&] { return !side.free_slots.empty(); });
      const uint64_t slot = side.free_slots.back();
      side.free_slots.pop_back();
      if (!side.transport.send(kReceiver, {.grant = slot}, side.pieces(slot, message_bytes), slot)) _exit(4);
    }
    side.run_until([&] { return side.free_slots.size() == kWindow; });
    char done;
    get(to_parent[0], &done, 1);
  });
  put(to_child[1], "e", 1);
  waitpid(child, nullptr, 0);
  for (int fd : {to_child[0], to_child[1], to_parent[0], to_parent[1]}) close(fd);
  return rates_of(gb_s);
}

Rates memcpy_rates(uint64_t total) {
  std::vector<uint8_t> from(kWindow * kSlotBytes, 1), to(kWindow * kSlotBytes, 2);
  return rates_of(repeat(total, [&] {
    for (uint64_t done = 0; done < total; done += kSlotBytes)
      std::memcpy(to.data() + done % to.size(), from.data() + done % from.size(), kSlotBytes);
  }));
}

Rates socket_rates(uint64_t chunk, uint64_t total) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), length) != 0 || listen(listener, 1) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0)
    _exit(2);
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    const int from = accept(listener, nullptr, nullptr);
    std::vector<uint8_t> buffer(chunk);
    for (int round = 0; round <= kRepeats; ++round) {
      for (uint64_t done = 0; done < total; done += chunk) get(from, buffer.data(), chunk);
      put(from, "d", 1);
    }
    _exit(0);
  }
  const int to = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(to, reinterpret_cast<sockaddr*>(&address), length) != 0) _exit(2);
  std::vector<uint8_t> buffer(kWindow * kSlotBytes, 1);
  const Rates rates = rates_of(repeat(total, [&] {
    for (uint64_t done = 0; done < total; done += chunk) put(to, buffer.data() + done % buffer.size(), chunk);
    char answer;
    get(to, &answer, 1);
  }));
  close(to);
  close(listener);
  waitpid(child, nullptr, 0);
  return rates;
}

void print(const char* name, uint64_t bytes, const Rates& rates, const char* end) {
  std::printf("  {\"what\": \"%s\", \"bytes\": %llu, \"gb_s\": [%.2f, %.2f, %.2f]}%s\n", name,
              static_cast<unsigned long long>(bytes), rates.low, rates.median, rates.high, end);
}

}  // namespace

int main() {
  constexpr uint64_t kTotal = 256 << 20;
  std::printf("{\"rates\": [\n");
  for (uint64_t bytes : {64 << 10, 1 << 20, 8 << 20}) {
    print("shm", bytes, message_rates(TransportMode::kSharedMemory, bytes, kTotal), ",");
    print("tcp", bytes, message_rates(TransportMode::kTcp, bytes, kTotal), ",");
    print("socket", bytes, socket_rates(bytes, kTotal), ",");
  }
  print("memcpy", kSlotBytes, memcpy_rates(kTotal), "");
  std::printf("]}\n");
}
