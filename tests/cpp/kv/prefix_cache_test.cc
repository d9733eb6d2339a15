#include "kv/prefix_cache.h"

#include "check.h"
#include "tensor/check.h"

namespace rtp_llm {
namespace {

BlockHash hash(uint8_t id) {
  BlockHash hash;
  hash.bytes.fill(id);
  return hash;
}

TEST(a_block_is_found_by_its_hash_until_it_is_erased) {
  PrefixCache cache(9);
  CHECK(cache.insert(7, hash(1)));
  CHECK(cache.find(hash(1)) == 7);
  CHECK(cache.hash_of(7) == hash(1));
  cache.erase(7);
  CHECK(!cache.find(hash(1)) && !cache.hash_of(7));
  CHECK_EQ(cache.size(), 0);
  cache.check_integrity();
}

TEST(the_first_block_keeps_a_hash_that_comes_twice) {
  PrefixCache cache(9);
  CHECK(cache.insert(7, hash(1)));
  CHECK(!cache.insert(8, hash(1)));
  CHECK(cache.find(hash(1)) == 7);
  CHECK(!cache.hash_of(8));
  cache.check_integrity();
}

TEST(the_least_recently_released_block_is_evicted_first) {
  PrefixCache cache(9);
  for (int block = 0; block < 3; ++block) cache.insert(block, hash(block));
  for (int block : {2, 0, 1}) cache.make_evictable(block);
  cache.make_referenced(2);
  cache.make_evictable(2);
  for (int block : {0, 1, 2}) CHECK(cache.evict() == block);
  CHECK(!cache.evict());
  CHECK_EQ(cache.size(), 0);
}

TEST(a_referenced_block_is_not_evicted) {
  PrefixCache cache(9);
  cache.insert(1, hash(1));
  CHECK(!cache.evict());
  cache.make_evictable(1);
  cache.make_referenced(1);
  CHECK(!cache.evict());
  CHECK_EQ(cache.num_evictable(), 0);
  CHECK(cache.find(hash(1)) == 1);
}

TEST(what_enters_and_leaves_is_in_the_log_and_what_is_there_in_a_snapshot) {
  using Kind = CacheEvent::Kind;
  PrefixCache cache(9);
  cache.insert(7, hash(1));
  cache.insert(8, hash(1));  // known already
  cache.insert(3, hash(2));
  cache.make_evictable(7);
  cache.evict();
  cache.erase(7);  // isn't known any more
  const std::vector<CacheEvent> all = {{Kind::kStored, hash(1)}, {Kind::kStored, hash(2)}, {Kind::kEvicted, hash(1)}};
  CHECK(cache.log().since(1) == all);
  const CacheSnapshot snapshot = cache.snapshot();
  CHECK_EQ(snapshot.number, 3);
  CHECK(snapshot.hashes == std::vector{hash(2)});
}

TEST(misuse_is_refused) {
  PrefixCache cache(9);
  CHECK_THROWS(cache.make_evictable(1), InvalidArgument);
  cache.insert(1, hash(1));
  CHECK_THROWS(cache.insert(1, hash(2)), InvalidArgument);
  cache.make_evictable(1);
  CHECK_THROWS(cache.make_evictable(1), InvalidArgument);
  cache.check_integrity();
}

}  // namespace
}  // namespace rtp_llm
