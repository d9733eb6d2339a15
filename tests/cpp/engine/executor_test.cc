#include "engine/executor.h"

#include "check.h"
#include "rig.h"

namespace rtp_llm {
namespace {

TEST(two_batches_are_used_in_turn) {
  testing::Rig rig;
  Executor executor(*rig.device, *rig.decoder, rig.engine->config());
  const Schedule nothing;
  // One is read by the device while the host fills the other.
  const Batch* first = &executor.prepare(nothing);
  const Batch* second = &executor.prepare(nothing);
  CHECK(first != second);
  CHECK(&executor.prepare(nothing) == first);
  CHECK(&executor.prepare(nothing) == second);
  rig.device->synchronize();  // as the engine does before its executor goes
}

}  // namespace
}  // namespace rtp_llm
