// SHA-256's compression of one block of 64 bytes into the state: by plain C++, or by the processor's instructions.
#pragma once

#include <array>
#include <cstdint>

namespace rtp_llm {

void compress_sha256_portably(std::array<uint32_t, 8>& state, const uint8_t* block);

// Whether the processor has SHA extensions, and SSE4.1.
bool has_sha256_instructions();
// REQUIRES: it has.
void compress_sha256_by_instructions(std::array<uint32_t, 8>& state, const uint8_t* block);

}  // namespace rtp_llm
