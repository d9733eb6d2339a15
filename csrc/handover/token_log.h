// TokenLog: the tokens of one k that its router was sent, in order from p0 on; remembered for a replay.
#pragma once

#include <cstdint>
#include <vector>

#include "handover/sequence_spec.h"

namespace rtp_llm {

struct TokenLog {
  int32_t p0 = 0;  // position of the first
  std::vector<SampledToken> tokens;

  // Notes a token unless it is known already.
  void note(const SampledToken& token) {
    if (token.position == p0 + static_cast<int32_t>(tokens.size())) tokens.push_back(token);
  }
  std::vector<SampledToken> from(int32_t position) const {
    std::vector<SampledToken> found;
    for (const SampledToken& token : tokens)
      if (token.position >= position) found.push_back(token);
    return found;
  }
};

}  // namespace rtp_llm
