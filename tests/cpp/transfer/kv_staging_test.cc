#include "transfer/kv_staging.h"

#include <numeric>

#include "check.h"
#include "pool_only.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

namespace {

std::vector<uint8_t> counting(size_t bytes) {
  std::vector<uint8_t> values(bytes);
  std::iota(values.begin(), values.end(), uint8_t{1});
  return values;
}

}  // namespace

TEST(pieces_lie_one_after_the_other_and_go_back_to_where_they_belong) {
  KvStaging staging(cpu(), 8, 2);
  std::vector<uint8_t> pool = counting(16);
  const std::vector<Piece> pieces{{pool.data() + 10, 3}, {pool.data(), 2}};
  KvStaging::Slot slot = staging.take(5);
  slot.load(pieces);
  const auto* at = static_cast<const uint8_t*>(slot.piece().data);
  CHECK_EQ(slot.piece().bytes, 5);
  CHECK_EQ(std::vector<uint8_t>(at, at + 5), (std::vector<uint8_t>{11, 12, 13, 1, 2}));
  std::fill(pool.begin(), pool.end(), uint8_t{0});
  slot.store(pieces);
  CHECK_EQ(pool, (std::vector<uint8_t>{1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 11, 12, 13, 0, 0, 0}));
}

TEST(slots_come_back_and_what_finds_none_or_is_longer_has_memory_of_its_own) {
  KvStaging staging(cpu(), 8, 2);
  {
    std::vector<KvStaging::Slot> taken;
    taken.push_back(staging.take(9));  // longer than a slot
    CHECK_EQ(staging.num_free(), 2);
    for (int i = 0; i < 3; ++i) taken.push_back(staging.take(8));
    CHECK_EQ(staging.num_free(), 0);
    std::vector<uint8_t> pool = counting(8), empty(8);
    for (size_t i = 1; i < taken.size(); ++i) {
      pool[0] = static_cast<uint8_t>(100 + i);
      taken[i].load(std::vector<Piece>{{pool.data(), 8}});
    }
    for (size_t i = 1; i < taken.size(); ++i) {  // none lies in another's place
      taken[i].store(std::vector<Piece>{{empty.data(), 8}});
      CHECK_EQ(int{empty[0]}, static_cast<int>(100 + i));
    }
    taken[1] = KvStaging::Slot();
    CHECK_EQ(staging.num_free(), 1);
  }
  CHECK_EQ(staging.num_free(), 2);
}

TEST(a_message_whose_pieces_have_other_bytes_is_an_error) {
  KvStaging staging(cpu(), 8, 1);
  std::vector<uint8_t> pool(8);
  KvStaging::Slot slot = staging.take(5);
  CHECK_THROWS_WITH(slot.load(std::vector<Piece>{{pool.data(), 4}}), InvalidArgument, "5 bytes is staged");
  CHECK_THROWS_WITH(slot.store(std::vector<Piece>{{pool.data(), 4}}), InvalidArgument, "5 bytes is staged");
}
