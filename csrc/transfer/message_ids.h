// Ids of UCX's active messages.
#pragma once

namespace rtp_llm {

constexpr unsigned kHelloId = 1;  // an endpoint's first message: its nonce
constexpr unsigned kKvId = 2;

}  // namespace rtp_llm
