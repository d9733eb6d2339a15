// Form: how a row is computed.
#pragma once

#include <cstdint>

namespace rtp_llm {

// Where a backend declares Ops::forms_equal() the bits are the same in both.
enum class Form : uint8_t { kPrefill, kDecode };

}  // namespace rtp_llm
