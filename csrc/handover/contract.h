// A broken contract between the machines and their caller: an error of this program, never of a peer.
#pragma once

#include <sstream>
#include <stdexcept>

namespace rtp_llm {

class ContractBroken : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// require(count > 0, "ReceiveDone for grant ", id, " which has none in flight"). The message is built
// only on failure.
template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) [[likely]]
    return;
  std::ostringstream text;
  (text << ... << parts);
  throw ContractBroken(text.str());
}

}  // namespace rtp_llm
