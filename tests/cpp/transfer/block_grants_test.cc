#include "transfer/block_grants.h"

#include <dlfcn.h>

#include <algorithm>
#include <filesystem>

#include "check.h"
#include "device/ops.h"

using namespace rtp_llm;

namespace {

constexpr int kBlockTokens = 4;

Device& cpu() {
  Dl_info info{};
  dladdr(reinterpret_cast<void*>(&supported_isas), &info);
  static const std::unique_ptr<Device> device =
      open_device("cpu", {}, std::filesystem::absolute(info.dli_fname).parent_path().string());
  return *device;
}

// An engine's pool and its memory, all bytes 0xee, without the engine.
class PoolOnly : public EnginePort {
 public:
  explicit PoolOnly(int num_blocks) : pool_(num_blocks, kBlockTokens) {
    memory_.assign(static_cast<size_t>(num_blocks * layout_.groups[0].block_bytes()), 0xee);
  }
  BlockPool& block_pool() override { return pool_; }
  const KvLayout& kv_layout() const override { return layout_; }
  void* kv_pool_base() const override { return memory_.data(); }
  std::string salt(const SequenceSpec&) const override { return "salt"; }
  int32_t layers_per_group() const override { return 1; }
  bool caches_prefixes() const override { return true; }
  void set_listener(EngineListener*) override {}
  void stop() override {}
  void validate(const SequenceSpec&, Role) const override {}
  void add(SequenceSpec, Role) override {}
  void join(SequenceSpec, std::vector<int32_t>) override {}
  void cancel(const RequestKey&) override {}
  void release(const RequestKey&) override {}
  int64_t queued_tokens() const override { return 0; }

  // The prompt's full blocks lie in the cache.
  void cache(const SequenceSpec& spec) {
    BlockHasher hasher(salt(spec), kBlockTokens, !cpu().ops().forms_equal());
    hasher.append(spec.prompt, Form::kPrefill);
    const auto blocks = pool_.allocate(static_cast<int>(hasher.hashes().size())).value();
    for (size_t i = 0; i < blocks.size(); ++i) pool_.insert(blocks[i], hasher.hashes()[i]);
    pool_.release(blocks);
  }
  bool is_zero(int32_t block) const {
    const auto bytes = static_cast<size_t>(layout_.groups[0].block_bytes());
    const auto begin = memory_.begin() + static_cast<ptrdiff_t>(block * bytes);
    return std::all_of(begin, begin + static_cast<ptrdiff_t>(bytes), [](uint8_t byte) { return byte == 0; });
  }

 private:
  KvLayout layout_ = KvLayout::transformer(1, 1, 4, DType::kF32, kBlockTokens);
  BlockPool pool_;
  mutable std::vector<uint8_t> memory_;
};

SequenceSpec prompt_of(int tokens, int max_tokens = 1) {
  SequenceSpec spec{.sampling = {.max_tokens = max_tokens}};
  for (int i = 0; i < tokens; ++i) spec.prompt.push_back(i);
  return spec;
}

}  // namespace

TEST(a_grant_holds_prefix_hits_and_zeroed_blocks_for_all_tokens) {
  PoolOnly engine(10);
  BlockGrants grants(cpu(), engine);
  engine.cache(prompt_of(9));  // two full blocks
  const GrantPool::Room room = grants.grant(prompt_of(14)).value();
  CHECK_EQ(room.blocks.size(), 4);
  CHECK_EQ(room.prefix_blocks, 2);
  CHECK(!engine.is_zero(room.blocks[1]));  // it holds the prefix
  CHECK(engine.is_zero(room.blocks[2]));
  CHECK(engine.is_zero(room.blocks[3]));
  grants.quarantine(room);
  grants.free_quarantined(room);
  CHECK_EQ(engine.block_pool().counts().cached, 2);
  CHECK_EQ(engine.block_pool().counts().free, 8);
}

TEST(what_granted_sequences_will_grow_by_is_kept_free_until_they_run_or_are_over) {
  PoolOnly engine(16);  // two percent: one block
  BlockGrants grants(cpu(), engine);
  const GrantPool::Room first = grants.grant(prompt_of(8, 100)).value();  // 2 blocks, will take more: 4 count
  CHECK_EQ(first.growth, 4);
  const GrantPool::Room second = grants.grant(prompt_of(8, 6)).value();  // 13 tokens are stored: 2 more blocks
  CHECK_EQ(second.growth, 2);
  CHECK(!grants.grant(prompt_of(5 * kBlockTokens)));  // 12 - 6 - 5 = 1, two sequences are promised
  const GrantPool::Room third = grants.grant(prompt_of(4 * kBlockTokens)).value();
  CHECK_EQ(third.growth, 0);
  grants.join(first);  // the engine speaks for it from here on
  grants.quarantine(second);
  grants.free_quarantined(second);
  CHECK(grants.grant(prompt_of(9 * kBlockTokens)).has_value());  // 10 - 9 = 1
}

TEST(a_grant_that_does_not_fit_wakes_nobody) {
  PoolOnly engine(4);
  BlockGrants grants(cpu(), engine);
  engine.cache(prompt_of(8));
  int heard = 0;
  const auto listening = engine.block_pool().on_room([&] { ++heard; });
  CHECK(!grants.grant(prompt_of(16)));
  CHECK_EQ(heard, 0);
  CHECK_EQ(engine.block_pool().counts().cached, 2);
}
