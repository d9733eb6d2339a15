#include "device/philox.h"

#include "check.h"

using namespace rtp_llm;

// Known answers of Random123's kat_vectors, philox4x32 10 rounds.
TEST(philox_matches_the_known_answers) {
  static_assert(philox4x32({0, 0, 0, 0}, 0, 0)[0] == 0x6627e8d5u);
  CHECK(philox4x32({0, 0, 0, 0}, 0, 0) == PhiloxBlock{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
  CHECK(philox4x32({0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu}, 0xffffffffu, 0xffffffffu) ==
        PhiloxBlock{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
  CHECK(philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, 0xa4093822u, 0x299f31d0u) ==
        PhiloxBlock{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
}

TEST(the_uniform_is_never_zero_or_one) {
  CHECK_EQ(uniform_from_bits(0), 0x1p-24f);
  CHECK_EQ(uniform_from_bits(0xffffffffu), 1.0f - 0x1p-24f);
}
