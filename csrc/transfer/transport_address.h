// TransportAddress: what a peer must know to connect, as one line of text.
#pragma once

#include <string>

namespace rtp_llm {

// "host port host-identity posix|tcp"
struct TransportAddress {
  std::string host;
  int port = 0;
  std::string host_identity;  // of the memory that the worker could share
  std::string memory;         // "posix": it does; "tcp"

  std::string text() const;
  // Throws InvalidArgument with the text, if it isn't one.
  static TransportAddress parse(const std::string& text);
};

}  // namespace rtp_llm
