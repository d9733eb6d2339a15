// Engine: one device, one model, one native thread that runs the step loop
// admit -> schedule -> forward -> sample -> publish.
//
// It owns the KV pool, the block pool and every sequence's blocks from admission until the sequence
// is finished and released. It knows tokens, blocks and devices; no HTTP, no Ray, no pools of
// workers.
//
// Thread rule: every public method may be called from any thread and returns at once. The listener
// is called on the engine thread and must not block.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "device/device.h"
#include "engine/engine_config.h"
#include "handover/token_columns.h"
#include "kv/block_pool.h"
#include "kv/kv_layout.h"
#include "kv/slot_pool.h"
#include "model/decoder.h"
#include "transfer/engine_port.h"

namespace rtp_llm {

// From the notice of a solo sequence's first step to that step: what the notice takes to leave this process.
inline constexpr std::chrono::milliseconds kStartedNotice{20};

// What a step computed, and how long that took.
struct StepSample {
  int64_t decode_rows = 0;
  int64_t context_tokens = 0;  // that the decode rows attended to, all together
  int64_t prefill_rows = 0;
  int64_t attention_pairs = 0;  // (row, token that it attends to) of the prefill rows
  double seconds = 0;
};

struct EngineLoad {
  int64_t queued_tokens = 0;  // prompt tokens that wait or are not computed yet
  int32_t waiting = 0;
  int32_t running = 0;
  BlockCounts blocks;
  SlotCounts slots;
  int32_t slots_awaited = 0;  // waiting sequences that hold none yet: each goes before grants once its turn has come
  StepSample step;            // the last one with rows
  double step_running_s = 0;  // since the step that runs now began, 0 between steps: one that hangs grows old
  uint64_t steps = 0;
  uint64_t prompt_tokens_computed = 0;  // rows in prefill form, prefix hits not counted
  uint64_t decode_tokens_computed = 0;
  uint64_t preemptions = 0;
  uint64_t prefix_hit_tokens = 0;
  bool paused = false;  // between steps, none is launched, and none begins before resume()
};

class Engine : public EnginePort {
 public:
  // Allocates pool, slots and workspaces, runs a warm-up step of the largest legal size, starts no
  // thread. REQUIRES: device and decoder outlive the engine.
  Engine(Device& device, Decoder& decoder, EngineConfig config);
  ~Engine() override;  // stops and joins

  void set_listener(EngineListener* listener) override;  // before start(); outlives the engine
  void start();
  void stop() override;

  // No step begins from here on; those that are launched end, and then load().paused says so. What is asked meanwhile
  // is queued, and cancel and release are obeyed.
  void pause();
  void resume();
  // Ends every sequence as if its engine had lost it: on_finished(kCancelled), without an output. Takes effect within
  // one chunk, paused or not; senders that are held wait for release().
  void give_up_all();

  // Throws InvalidArgument, as add() would, if this spec can never run here.
  void validate(const SequenceSpec& spec, Role role) const override;
  // Queues a sequence. Throws InvalidArgument naming field and value (token id out of range, prompt
  // too long, ...); a bad spec disturbs nobody.
  void add(SequenceSpec spec, Role role) override;
  // A sequence whose KV (of prompt and output, all but the last output token's) lies in `blocks`,
  // verified; the engine takes the blocks' one reference each, and the slot that was taken for it
  // (slot_pool().grant); neither if it throws InvalidArgument. spec.output ends with the token sampled
  // by the sender; it joins the step being built. Full blocks enter the prefix cache.
  void join(SequenceSpec spec, std::vector<int32_t> blocks) override;
  // Takes effect within one chunk; ends with on_finished(kCancelled). Unknown keys are ignored, and
  // kSender sequences that have sampled.
  void cancel(const RequestKey& key) override;
  // A kSender sequence after on_prefilled (or cancelled): its blocks go to the cache or free.
  // Idempotent.
  void release(const RequestKey& key) override;

  // Outputs since the last call, one batch for all sequences but kSender; empty if none. `notify` is called on
  // the engine thread when outputs went from empty to non-empty (an eventfd write).
  TokenColumns take_outputs();
  // It is also called when the engine has failed. REQUIRES: not started yet.
  void set_output_notify(std::function<void()> notify);

  // Why the engine thread has ended by itself; nullopt while all is well. After that add and join throw
  // Error with this text.
  std::optional<std::string> failure() const;

  EngineLoad load() const;
  int64_t queued_tokens() const override { return load().queued_tokens; }
  // Zero references, nothing granted, quarantined, gated, no slot taken; no sequences. Throws Error
  // naming what isn't.
  void check_idle() const;

  Device& device();
  BlockPool& block_pool() override;
  SlotPool& slot_pool() override;
  const KvLayout& kv_layout() const override;
  void* kv_pool_base() const override;
  int64_t kv_pool_bytes() const;
  std::string salt(const SequenceSpec& spec) const override;
  const EngineConfig& config() const;
  int32_t layers_per_message() const override { return config().layers_per_message; }
  int64_t vocab_size() const override;
  bool caches_prefixes() const override { return config().enable_prefix_caching; }
  // (backend, ISA, dtype, KV dtype, tp, mode, digest) as text:
  // "cpu/avx512bf16/bfloat16/bfloat16/tp1/exact/89ab…".
  std::string numerics_id() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace rtp_llm
