// Station: a worker's transport in a test. Messages land one behind the other in `memory`; what happens is kept.
#pragma once

#include <poll.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "handover/times.h"
#include "transfer/transport.h"

namespace rtp_llm::testing {

// Ends what hangs. Nothing depends on how long it takes: a busy machine may give a process no time for seconds.
inline constexpr double kHangS = 120;

// A handover in which nothing runs out and nothing is said again.
inline HandoverTimes unhurried() {
  return {.lease = kHangS,
          .repeat = kHangS,
          .reserve_wait = kHangS,
          .verify_stall = kHangS,
          .quarantine = kHangS,
          .push_stall = kHangS,
          .flush = kHangS,
          .router_expiry = kHangS};
}

inline double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Byte i of the message with this seed.
inline uint8_t pattern(uint64_t seed, uint64_t i) {
  return static_cast<uint8_t>((seed * 131 + i * 7 + (i >> 8)) ^ 0x5a);
}

class Station : public TransportListener {
 public:
  Station(TransportConfig config, uint64_t memory_bytes) : memory(memory_bytes, 0xee), transport(config, *this) {}

  // Message `grant` lands at grant * slot_bytes, cut into pieces of piece_bytes laid backwards.
  std::optional<Acceptance> accept(const WorkerKey&, const KvMessageHeader& header, uint64_t bytes) override {
    if (!live.contains(header.grant)) return std::nullopt;
    untold.insert(header.grant);
    return Acceptance{pieces_of(header.grant, bytes), header.grant};
  }
  std::vector<Piece> pieces_of(uint64_t grant, uint64_t bytes) {
    std::vector<Piece> pieces;
    for (uint64_t done = 0; done < bytes; done += piece_bytes) {
      const uint64_t part = std::min(piece_bytes, bytes - done);
      pieces.push_back({memory.data() + grant * slot_bytes + (bytes - done - part), part});
    }
    return pieces;
  }
  void on_received(uint64_t tag, bool landed) override {
    events.push_back((landed ? "received " : "lost ") + std::to_string(tag));
    untold.erase(tag);
  }
  void on_sent(uint64_t tag, bool sent) override {
    events.push_back((sent ? "sent " : "unsent ") + std::to_string(tag));
  }
  void on_closed(Direction direction, const WorkerKey& peer, const std::string& reason) override {
    closed.push_back(reason);
    if (direction == Direction::kReceive) untold_at_close += untold.size();
    events.push_back((direction == Direction::kReceive ? "closed-in " : "closed-out ") + peer.id);
  }
  void on_warning(const std::string& text) override { warnings.push_back(text); }

  int count(const std::string& prefix) const {
    int number = 0;
    for (const std::string& event : events) number += event.starts_with(prefix);
    return number;
  }

  // Blocks on the event fd (and `other_fd`) until `done` or the time is over; returns whether done.
  bool run_until(const std::function<bool()>& done, double timeout_s = kHangS, int other_fd = -1) {
    const double end = now_s() + timeout_s;
    while (!done()) {
      const double now = now_s();
      if (now > end) return false;
      if (transport.progress(now)) continue;
      if (!transport.arm()) continue;
      const double wake = std::min(end, transport.next_deadline().value_or(end));
      pollfd fds[2] = {{transport.event_fd(), POLLIN, 0}, {other_fd, POLLIN, 0}};
      ++waits;
      poll(fds, 2, std::max(0, static_cast<int>((wake - now_s()) * 1000) + 1));
      if (fds[1].revents != 0) return false;
    }
    return true;
  }

  std::vector<uint8_t> memory;
  uint64_t slot_bytes = 4 << 20;
  uint64_t piece_bytes = 64 << 10;
  std::set<uint64_t> live;
  std::set<uint64_t> untold;   // accepted, and not told what came of it
  size_t untold_at_close = 0;  // when inbound endpoints were told closed: the fence is that it is 0
  std::vector<std::string> events;
  std::vector<std::string> closed;  // reasons
  std::vector<std::string> warnings;
  int waits = 0;
  Transport transport;  // last: it calls the rest
};

}  // namespace rtp_llm::testing
