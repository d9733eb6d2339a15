#include "handover/types.h"

#include "check.h"

namespace rtp_llm {
namespace {

TEST(keys_are_said_with_all_their_parts) {
  CHECK_EQ((RequestKey{0xabc, 12, 3, 4}.str()), "0000000000000abc/12/3#4");
  CHECK_EQ((RequestKey{UINT64_MAX, UINT64_MAX, UINT32_MAX, UINT32_MAX}.str()),
           "ffffffffffffffff/18446744073709551615/4294967295#4294967295");
  CHECK_EQ((WorkerKey{"decode-1", 0x1f}.str()), "decode-1@000000000000001f");
}

TEST(all_attempts_of_an_answer_are_one_without_their_number) {
  CHECK((RequestKey{1, 2, 3, 4}.without_attempt() == RequestKey{1, 2, 3, 0}));
  CHECK((RequestKey{1, 2, 3, 4}.without_attempt() != RequestKey{1, 2, 4, 0}));
}

}  // namespace
}  // namespace rtp_llm
