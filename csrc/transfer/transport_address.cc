#include "transfer/transport_address.h"

#include <sstream>

#include "tensor/check.h"

namespace rtp_llm {

std::string TransportAddress::text() const { return concat(host, ' ', port, ' ', host_identity, ' ', memory); }

TransportAddress TransportAddress::parse(const std::string& text) {
  TransportAddress address;
  std::istringstream in(text);
  in >> address.host >> address.port >> address.host_identity >> address.memory;
  check(!in.fail() && address.port > 0 && address.port < 65536, "'", text, "' is not a transport address");
  return address;
}

}  // namespace rtp_llm
