#include "kv/block_pool.h"

#include <algorithm>
#include <numeric>
#include <ranges>

#include "tensor/check.h"

namespace rtp_llm {

using Lock = std::lock_guard<std::mutex>;

BlockPool::BlockPool(int num_blocks, int block_tokens)
    : num_blocks_(num_blocks), block_tokens_(block_tokens), cache_(std::max(num_blocks, 0)) {
  check(num_blocks > 0, "num_blocks must be positive, got ", num_blocks);
  check(block_tokens > 0, "block_tokens must be positive, got ", block_tokens);
  blocks_.resize(num_blocks);
  num_in_state_[static_cast<int>(State::kFree)] = num_blocks;
  free_.resize(num_blocks);
  std::iota(free_.rbegin(), free_.rend(), 0);  // block 0 on top
}

// ---- Sequences

std::optional<std::vector<int32_t>> BlockPool::allocate(int count) {
  check(count >= 0, "can't allocate ", count, " blocks");
  Lock lock(mutex_);
  if (count > room()) return std::nullopt;
  std::vector<int32_t> taken = take(count, State::kReferenced);
  for (int32_t block : taken) blocks_[block].references = 1;
  return taken;
}

std::optional<std::vector<int32_t>> BlockPool::allocate_for_step(int count) {
  check(count >= 0, "can't allocate ", count, " blocks");
  Lock lock(mutex_);
  const int missing = std::max(0, count - room());
  const std::vector<int32_t> gated = missing > 0 ? behind_steps() : std::vector<int32_t>();
  if (missing > static_cast<int>(gated.size())) return std::nullopt;
  std::vector<int32_t> taken = take(count - missing, State::kReferenced);
  for (int32_t block : std::span(gated).first(static_cast<size_t>(missing))) {
    cache_.erase(block);
    set_state(block, State::kReferenced);
    taken.push_back(block);
  }
  for (int32_t block : taken) blocks_[block].references = 1;
  return taken;
}

std::optional<int32_t> BlockPool::allocate_one_for_step() {
  {
    Lock lock(mutex_);
    if (room() > 0) {
      const int32_t block = take_one(State::kReferenced);
      blocks_[block].references = 1;
      return block;
    }
  }
  const std::optional<std::vector<int32_t>> taken = allocate_for_step(1);
  return taken ? std::optional(taken->front()) : std::nullopt;
}

bool BlockPool::can_allocate_for_step(int count) const {
  Lock lock(mutex_);
  return count <= room() || count <= room() + static_cast<int>(behind_steps().size());
}

std::vector<int32_t> BlockPool::match(std::span<const BlockHash> hashes, int max_blocks) {
  Lock lock(mutex_);
  std::vector<int32_t> hits = known_run(hashes, max_blocks);
  refer_to_known(hits);
  return hits;
}

int BlockPool::count_cached(std::span<const BlockHash> hashes) const {
  Lock lock(mutex_);
  const auto unknown = std::ranges::find_if(hashes, [&](const BlockHash& hash) { return !cache_.find(hash); });
  return static_cast<int>(unknown - hashes.begin());
}

void BlockPool::reference(std::span<const int32_t> blocks) {
  Lock lock(mutex_);
  require_state(blocks, {State::kReferenced}, "reference");
  for (int32_t block : blocks) ++blocks_[block].references;
}

void BlockPool::release(std::span<const int32_t> blocks) {
  Lock lock(mutex_);
  require_state(blocks, {State::kReferenced}, "release");
  decrement(blocks, &Block::references, "release");
  for (int32_t block : std::views::reverse(blocks))
    if (blocks_[block].references == 0 && blocks_[block].state == State::kReferenced) enter_gate(block);
}

int32_t BlockPool::insert(int32_t block, const BlockHash& hash) {
  Lock lock(mutex_);
  require_state({&block, 1}, {State::kReferenced, State::kGated}, "insert");
  if (const std::optional<int32_t> known = cache_.find(hash)) return *known;
  cache_.insert(block, hash);
  return block;
}

void BlockPool::withdraw(std::span<const BlockHash> hashes) {
  Lock lock(mutex_);
  for (const BlockHash& hash : hashes)
    if (const std::optional<int32_t> block = cache_.find(hash)) forget(*block);
}

void BlockPool::withdraw_all() {
  Lock lock(mutex_);
  for (int32_t block = 0; block < num_blocks_; ++block) forget(block);
}

void BlockPool::forget(int32_t block) {
  cache_.erase(block);
  if (blocks_[block].state != State::kCached) return;
  set_state(block, State::kFree);
  free_.push_back(block);
}

// ---- Grants

std::optional<GrantedBlocks> BlockPool::grant(std::span<const BlockHash> hashes, int num_blocks, BlockDemand promised) {
  check(num_blocks >= 0, "can't grant ", num_blocks, " blocks");
  Lock lock(mutex_);
  std::vector<int32_t> blocks = known_run(hashes, num_blocks);
  const int num_hits = static_cast<int>(blocks.size());
  const auto revived =
      std::ranges::count_if(blocks, [&](int32_t block) { return blocks_[block].state == State::kCached; });
  const int left = room() - static_cast<int>(revived) - (num_blocks - num_hits);
  const int two_percent = (num_blocks_ + 49) / 50;
  const int watermark = std::max(two_percent, demand_.sequences + promised.sequences);
  if (left - demand_.blocks - promised.blocks < watermark) return std::nullopt;
  refer_to_known(blocks);
  const std::vector<int32_t> fresh = take(num_blocks - num_hits, State::kGranted);
  blocks.insert(blocks.end(), fresh.begin(), fresh.end());
  return GrantedBlocks{std::move(blocks), num_hits};
}

std::optional<std::vector<int32_t>> BlockPool::grant(int num_blocks, BlockDemand promised) {
  std::optional<GrantedBlocks> granted = grant({}, num_blocks, promised);
  if (!granted) return std::nullopt;
  return std::move(granted->blocks);
}

void BlockPool::granted_to_referenced(std::span<const int32_t> blocks) {
  Lock lock(mutex_);
  require_state(blocks, {State::kGranted}, "take over");
  for (int32_t block : blocks)
    check(blocks_[block].pins == 0, "can't take over block ", block, ": ", blocks_[block].pins,
          " transfers may still touch it");
  for (int32_t block : blocks) {
    set_state(block, State::kReferenced);
    blocks_[block].references = 1;
  }
  note_room();
}

void BlockPool::quarantine(std::span<const int32_t> blocks) {
  Lock lock(mutex_);
  require_state(blocks, {State::kGranted}, "quarantine");
  for (int32_t block : blocks) set_state(block, State::kQuarantined);
  note_room();
}

void BlockPool::free_quarantined(std::span<const int32_t> blocks) {
  Lock lock(mutex_);
  require_state(blocks, {State::kQuarantined}, "free from quarantine");
  for (int32_t block : blocks)
    if (blocks_[block].state == State::kQuarantined) enter_gate(block);
}

void BlockPool::set_demand(BlockDemand demand) {
  check(demand.blocks >= 0 && demand.sequences >= 0, "demand can't be negative: ", demand.blocks, " blocks, ",
        demand.sequences, " sequences");
  Lock lock(mutex_);
  demand_ = demand;
  note_room();
}

BlockPool::RoomListener BlockPool::on_room(std::function<void()> listener) {
  Lock lock(mutex_);
  room_listeners_.emplace(++next_listener_, std::move(listener));
  return {*this, next_listener_};
}

BlockPool::RoomListener::~RoomListener() {
  if (pool_ == nullptr) return;
  Lock lock(pool_->mutex_);
  pool_->room_listeners_.erase(id_);
}

// ---- Gate

void BlockPool::step_launched(uint64_t step) {
  Lock lock(mutex_);
  check(step > launched_step_, "step ", step, " launched after step ", launched_step_);
  launched_step_ = step;
}

void BlockPool::step_ended(uint64_t step) {
  Lock lock(mutex_);
  check(step > ended_step_ && step <= launched_step_, "step ", step, " ended, but ", ended_step_, " had ended and ",
        launched_step_, " was the last one launched");
  ended_step_ = step;
  while (!gate_.empty() && gate_.front().first <= step) {
    const int32_t block = gate_.front().second;
    gate_.pop_front();
    if (blocks_[block].state == State::kGated && may_pass_gate(blocks_[block])) pass_gate(block);
  }
}

void BlockPool::pin(std::span<const int32_t> blocks) {
  Lock lock(mutex_);
  require_state(blocks, {State::kReferenced, State::kGranted}, "pin");
  for (int32_t block : blocks) ++blocks_[block].pins;
}

void BlockPool::unpin(std::span<const int32_t> blocks) {
  Lock lock(mutex_);
  for (int32_t block : blocks)
    check(block >= 0 && block < num_blocks_, "block ", block, " out of range, pool has ", num_blocks_);
  decrement(blocks, &Block::pins, "unpin");
  for (int32_t block : blocks)
    if (blocks_[block].state == State::kGated && may_pass_gate(blocks_[block])) pass_gate(block);
}

// ---- Reading

BlockCounts BlockPool::counts() const {
  Lock lock(mutex_);
  return {.total = num_blocks_,
          .free = count_of(State::kFree),
          .referenced = count_of(State::kReferenced),
          .granted = count_of(State::kGranted),
          .quarantined = count_of(State::kQuarantined),
          .gated = count_of(State::kGated),
          .cached = count_of(State::kCached)};
}

std::optional<std::vector<CacheEvent>> BlockPool::cache_events(uint64_t first) const {
  Lock lock(mutex_);
  return cache_.log().since(first);
}

uint64_t BlockPool::last_cache_event() const {
  Lock lock(mutex_);
  return cache_.log().last();
}

CacheSnapshot BlockPool::cache_snapshot() const {
  Lock lock(mutex_);
  return cache_.snapshot();
}

void BlockPool::check_integrity() const {
  Lock lock(mutex_);
  const auto require = [](bool holds, const auto&... parts) {
    if (!holds) throw Error(concat("block pool: ", parts...));
  };
  std::array<int, kNumStates> seen{};
  for (int32_t id = 0; id < num_blocks_; ++id) {
    const Block& block = blocks_[id];
    const char* state = name_of(block.state);
    ++seen[static_cast<int>(block.state)];
    require(block.references >= 0 && (block.references > 0) == (block.state == State::kReferenced), "block ", id,
            " is ", state, " with ", block.references, " references");
    const bool owned = block.state != State::kFree && block.state != State::kCached;
    require(block.pins >= 0 && (block.pins == 0 || owned), "block ", id, " is ", state, " with ", block.pins, " pins");
    const bool hashed = cache_.hash_of(id).has_value();
    require(cache_.evictable(id) == (block.state == State::kCached), "block ", id, " is ", state,
            cache_.evictable(id) ? " and evictable" : " and not evictable");
    require(
        !hashed || block.state == State::kReferenced || block.state == State::kGated || block.state == State::kCached,
        "block ", id, " is ", state, " and has a hash");
    if (block.state != State::kGated) continue;
    require(!may_pass_gate(block), "block ", id, " is gated by step ", block.gate_step,
            ", which has ended, without pins");
    const bool queued = std::ranges::find(gate_, std::pair(block.gate_step, id)) != gate_.end();
    require(queued || block.gate_step <= ended_step_, "block ", id, " waits for step ", block.gate_step,
            ", which doesn't know it");
  }
  for (int i = 0; i < kNumStates; ++i)
    require(seen[i] == num_in_state_[i], seen[i], " blocks are ", name_of(static_cast<State>(i)), ", ",
            num_in_state_[i], " are counted");
  std::vector<int32_t> stack = free_;
  std::ranges::sort(stack);
  require(std::ranges::adjacent_find(stack) == stack.end(), "a block is free twice");
  require(static_cast<int>(stack.size()) == count_of(State::kFree), stack.size(), " blocks on the free stack, ",
          count_of(State::kFree), " are free");
  for (int32_t id : stack)
    require(blocks_[id].state == State::kFree, "block ", id, " on the free stack is ", name_of(blocks_[id].state));
  cache_.check_integrity();
}

// ---- Moves between states

std::vector<int32_t> BlockPool::known_run(std::span<const BlockHash> hashes, int max_blocks) const {
  std::vector<int32_t> blocks;
  for (const BlockHash& hash : hashes) {
    if (static_cast<int>(blocks.size()) >= max_blocks) break;
    const std::optional<int32_t> block = cache_.find(hash);
    if (!block) break;
    blocks.push_back(*block);
  }
  return blocks;
}

void BlockPool::refer_to_known(std::span<const int32_t> blocks) {
  for (int32_t block : blocks) {
    cache_.make_referenced(block);
    set_state(block, State::kReferenced);
    ++blocks_[block].references;
  }
}

void BlockPool::set_state(int32_t block, State state) {
  --num_in_state_[static_cast<int>(blocks_[block].state)];
  blocks_[block].state = state;
  ++num_in_state_[static_cast<int>(state)];
}

int32_t BlockPool::take_one(State state) {
  int32_t block;
  if (free_.empty()) {
    block = cache_.evict().value();
  } else {
    block = free_.back();
    free_.pop_back();
  }
  set_state(block, state);
  return block;
}

std::vector<int32_t> BlockPool::take(int count, State state) {
  std::vector<int32_t> taken(count);
  for (int32_t& block : taken) block = take_one(state);
  return taken;
}

std::vector<int32_t> BlockPool::behind_steps() const {
  std::vector<int32_t> blocks;
  for (const auto& [step, block] : gate_)
    if (blocks_[block].state == State::kGated && blocks_[block].pins == 0) blocks.push_back(block);
  std::ranges::sort(blocks);
  const auto repeated = std::ranges::unique(blocks);
  blocks.erase(repeated.begin(), repeated.end());
  std::ranges::stable_partition(blocks, [&](int32_t block) { return !cache_.hash_of(block); });
  return blocks;
}

void BlockPool::decrement(std::span<const int32_t> blocks, int32_t Block::* count, const char* verb) {
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (--(blocks_[blocks[i]].*count) >= 0) continue;
    for (int32_t block : blocks.first(i + 1)) ++(blocks_[block].*count);
    throw InvalidArgument(concat("can't ", verb, " block ", blocks[i], ": its count is ", blocks_[blocks[i]].*count,
                                 ", and it was named more often"));
  }
}

void BlockPool::enter_gate(int32_t block) {
  blocks_[block].gate_step = launched_step_;
  set_state(block, State::kGated);
  if (may_pass_gate(blocks_[block])) {
    pass_gate(block);
  } else {
    gate_.emplace_back(launched_step_, block);
  }
}

void BlockPool::pass_gate(int32_t block) {
  if (cache_.hash_of(block)) {
    set_state(block, State::kCached);
    cache_.make_evictable(block);
  } else {
    set_state(block, State::kFree);
    free_.push_back(block);
  }
  note_room();
}

void BlockPool::require_state(std::span<const int32_t> blocks, std::initializer_list<State> allowed,
                              const char* verb) const {
  for (int32_t block : blocks) {
    check(block >= 0 && block < num_blocks_, "block ", block, " out of range, pool has ", num_blocks_);
    const State state = blocks_[block].state;
    check(std::ranges::find(allowed, state) != allowed.end(), "can't ", verb, " block ", block, ": it is ",
          name_of(state));
  }
}

const char* BlockPool::name_of(State state) {
  switch (state) {
    case State::kFree: return "free";
    case State::kReferenced: return "referenced";
    case State::kGranted: return "granted";
    case State::kQuarantined: return "quarantined";
    case State::kGated: return "gated";
    case State::kCached: return "cached";
  }
  return "?";
}

}  // namespace rtp_llm
