// PoolOnly: an engine's pool and its memory without the engine; what it is asked is kept, and refused if a test wants
// it.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "device/device.h"
#include "device/ops.h"
#include "transfer/engine_port.h"
#include "transfer/invalid_request.h"

namespace rtp_llm::testing {

inline std::unique_ptr<Device> open_cpu(const DeviceOptions& options) {
  Dl_info info{};
  dladdr(reinterpret_cast<void*>(&supported_isas), &info);
  return open_device("cpu", options, std::filesystem::absolute(info.dli_fname).parent_path().string());
}
inline Device& cpu() {
  static const std::unique_ptr<Device> device = open_cpu({});
  return *device;
}
// Its memory counts as out of the host's reach.
inline Device& staged_cpu() {
  static const std::unique_ptr<Device> device = open_cpu({.isa = "", .queued = true});
  return *device;
}

// 1 layer of 1 head with 4 values, 4 tokens a block.
inline KvLayout small_layout() { return KvLayout::transformer(1, 1, 4, DType::kF32, 4); }

// All bytes of the memory are 0xee. Other threads may ask while the test reads what was asked.
class PoolOnly : public EnginePort {
 public:
  explicit PoolOnly(int num_blocks, KvLayout layout = small_layout(), int num_slots = 64)
      : layout_(std::move(layout)), pool_(num_blocks, group().block_tokens), slots_(num_slots) {
    memory_.assign(static_cast<size_t>(num_blocks * group().block_bytes()), 0xee);
  }
  BlockPool& block_pool() override { return pool_; }
  SlotPool& slot_pool() override { return slots_; }
  const KvLayout& kv_layout() const override { return layout_; }
  void* kv_pool_base() const override { return memory_.data(); }
  std::string salt(const SequenceSpec&) const override { return "salt"; }
  int32_t layers_per_message() const override { return 1; }
  bool caches_prefixes() const override { return true; }
  int64_t vocab_size() const override { return 1000; }
  void set_listener(EngineListener* given) override { listener = given; }
  void stop() override {
    std::lock_guard lock(mutex_);
    calls_.push_back("stop");
  }
  void validate(const SequenceSpec& spec, Role) const override { note(concat("validate ", spec.key.request)); }
  void add(SequenceSpec spec, Role) override { note(concat("add ", spec.key.request)); }
  void join(SequenceSpec spec, std::vector<int32_t>) override { note(concat("join ", spec.key.request)); }
  void cancel(const RequestKey& key) override { note(concat("cancel ", key.request)); }
  void release(const RequestKey& key) override { note(concat("release ", key.request)); }
  int64_t queued_tokens() const override { return num_queued; }

  // A call that begins so throws InvalidRequest; set before other threads call.
  std::optional<std::string> refuses;
  int64_t num_queued = 0;
  // Called first in each call, on its thread; set before other threads call.
  std::function<void()> at_call;
  std::vector<std::string> calls() const {
    std::lock_guard lock(mutex_);
    return calls_;
  }

  // The prompt's full blocks lie in the cache.
  void cache(const SequenceSpec& spec) {
    BlockHasher hasher(salt(spec), group().block_tokens, !cpu().ops().forms_equal());
    hasher.append(spec.prompt, Form::kPrefill);
    const auto blocks = pool_.allocate(static_cast<int>(hasher.hashes().size())).value();
    for (size_t i = 0; i < blocks.size(); ++i) pool_.insert(blocks[i], hasher.hashes()[i]);
    pool_.release(blocks);
  }
  std::span<uint8_t> bytes_of(int32_t block) const {
    const auto bytes = static_cast<size_t>(group().block_bytes());
    return std::span(memory_).subspan(static_cast<size_t>(block) * bytes, bytes);
  }
  bool is_zero(int32_t block) const {
    return std::ranges::all_of(bytes_of(block), [](uint8_t byte) { return byte == 0; });
  }

  EngineListener* listener = nullptr;

 private:
  const KvGroup& group() const { return layout_.groups[0]; }
  void note(const std::string& call) const {
    if (at_call) at_call();
    std::lock_guard lock(mutex_);
    calls_.push_back(call);
    if (refuses && call.starts_with(*refuses)) throw InvalidRequest("PromptTooLongError", "max_tokens", "no " + call);
  }

  const KvLayout layout_;
  BlockPool pool_;
  SlotPool slots_;
  mutable std::vector<uint8_t> memory_;
  mutable std::mutex mutex_;
  mutable std::vector<std::string> calls_;
};

inline SequenceSpec prompt_of(int tokens, int max_tokens = 1) {
  SequenceSpec spec;
  spec.sampling.max_tokens = max_tokens;
  for (int i = 0; i < tokens; ++i) spec.prompt.push_back(i);
  return spec;
}

}  // namespace rtp_llm::testing
