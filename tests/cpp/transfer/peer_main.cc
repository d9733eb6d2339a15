// The other process of transport_test.cc: a Station that obeys lines on stdin and reports on stdout.
// Arguments: mode, directory of shared memory.
//
//   address                            -> "address TEXT"
//   expect ID EPOCH                    -> "nonce N"
//   connect ID EPOCH NONCE ADDRESS...
//   send ID EPOCH GRANT BYTES SEED     the message's bytes are pattern(SEED, i), of SEED 0 zeros; the tag is GRANT
//   live GRANT                         accept messages of this grant
//   check GRANT BYTES SEED             -> "check same|different"
// Each event of the station is a line.
#include <fcntl.h>
#include <unistd.h>

#include <iostream>
#include <sstream>

#include "station.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

namespace {

void say(const std::string& line) {
  const std::string text = line + "\n";
  if (write(STDOUT_FILENO, text.data(), text.size()) < 0) _exit(3);
}

void obey(Station& station, const std::string& line) {
  std::istringstream in(line);
  std::string verb;
  in >> verb;
  WorkerKey peer;
  uint64_t grant = 0, bytes = 0, seed = 0;
  if (verb == "address") say("address " + station.transport.address());
  if (verb == "expect") {
    in >> peer.id >> peer.epoch;
    say("nonce " + std::to_string(station.transport.expect(peer)));
  }
  if (verb == "connect") {
    uint64_t nonce = 0;
    in >> peer.id >> peer.epoch >> nonce >> std::ws;
    std::string address;
    std::getline(in, address);
    station.transport.connect(peer, address, nonce);
  }
  if (verb == "send") {
    in >> peer.id >> peer.epoch >> grant >> bytes >> seed;
    std::vector<Piece> pieces = station.pieces_of(grant, bytes);
    uint64_t i = 0;
    for (Piece& piece : pieces) {
      if (seed == 0) std::memset(piece.data, 0, piece.bytes);
      for (uint64_t j = 0; seed != 0 && j < piece.bytes; ++j) static_cast<uint8_t*>(piece.data)[j] = pattern(seed, i++);
    }
    KvMessageHeader header{.grant = grant};
    if (!station.transport.send(peer, header, pieces, grant)) say("nowhere");
  }
  if (verb == "live") {
    in >> grant;
    station.live.insert(grant);
  }
  if (verb == "check") {
    in >> grant >> bytes >> seed;
    bool same = true;
    uint64_t i = 0;
    for (Piece& piece : station.pieces_of(grant, bytes))
      for (uint64_t j = 0; j < piece.bytes; ++j) same &= static_cast<uint8_t*>(piece.data)[j] == pattern(seed, i++);
    say(same ? "check same" : "check different");
  }
}

}  // namespace

int main(int, char** argv) {
  TransportConfig config;
  config.mode = transport_mode_from_name(argv[1]);
  config.shared_memory_directory = argv[2];
  Station station(config, 64 << 20);
  fcntl(STDIN_FILENO, F_SETFL, fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
  std::string pending;
  size_t told = 0;
  for (;;) {
    station.run_until(
        [&] {
          for (; told < station.events.size(); ++told) say(station.events[told]);
          return false;
        },
        3600, STDIN_FILENO);
    char buffer[4096];
    const ssize_t count = read(STDIN_FILENO, buffer, sizeof buffer);
    if (count == 0) return 0;
    if (count > 0) pending.append(buffer, static_cast<size_t>(count));
    for (size_t end; (end = pending.find('\n')) != std::string::npos; pending.erase(0, end + 1))
      obey(station, pending.substr(0, end));
  }
}
