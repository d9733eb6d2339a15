#include "kv/cache_log.h"

#include "check.h"
#include "tensor/check.h"

namespace rtp_llm {
namespace {

using Kind = CacheEvent::Kind;

BlockHash hash(uint8_t id) {
  BlockHash hash;
  hash.bytes.fill(id);
  return hash;
}

TEST(events_are_numbered_from_one_and_read_from_any_number) {
  CacheLog log(4);
  CHECK_EQ(log.last(), 0);
  CHECK(log.since(1) && log.since(1)->empty());
  log.append(Kind::kStored, hash(1));
  log.append(Kind::kEvicted, hash(1));
  CHECK_EQ(log.last(), 2);
  CHECK(log.since(2) == std::vector<CacheEvent>{{Kind::kEvicted, hash(1)}});
  CHECK(log.since(3) && log.since(3)->empty());
}

TEST(what_the_ring_has_overwritten_or_not_seen_yet_is_not_told) {
  CacheLog log(4);
  for (uint8_t id = 1; id <= 6; ++id) log.append(Kind::kStored, hash(id));
  CHECK(!log.since(2));
  const auto told = log.since(3);
  CHECK_EQ(told->size(), 4);
  CHECK(told->front().hash == hash(3) && told->back().hash == hash(6));
  CHECK(!log.since(8));
  CHECK_THROWS(log.since(0), InvalidArgument);
}

}  // namespace
}  // namespace rtp_llm
