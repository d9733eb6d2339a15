// EnginePort: what the transfer thread asks of an engine; EngineListener: what it hears from it. Engine implements the
// one and calls the other, so this room stands below the engine.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "device/device.h"
#include "handover/sequence_spec.h"
#include "kv/block_pool.h"
#include "kv/kv_layout.h"
#include "kv/slot_pool.h"

namespace rtp_llm {

// A piece of KV of a sender sequence that is ready to leave once `ready` is done: layers [first_layer, first_layer +
// num_layers) of tokens [first_token, first_token + tokens) are stored in the pool then. `first_token` is
// where the step's chunk began: behind the prefix hits, and inside a block if the chunk before it
// ended there (chunks end at block borders only where the budget reaches one).
struct ComputedLayers {
  RequestKey key;
  int first_layer;
  int num_layers;
  int first_token;
  int tokens;
  double launched_at;  // the stores; transfer/clock.h
  StreamEvent ready;   // of the engine's device
};

// What the transfer side hears. On the engine thread; must only post to its own queue.
class EngineListener {
 public:
  virtual ~EngineListener() = default;
  // A kSender sequence got all blocks for its `tokens` (prompt and output so far), before any of it is
  // computed. `cached_tokens` of them were prefix hits: their KV is ready now.
  virtual void on_scheduled(const RequestKey& key, std::vector<int32_t> blocks, int tokens, int cached_tokens) = 0;
  // Within a step, as soon as the stores of the layer group are launched; ascending layers; tokens of this step's
  // chunk.
  virtual void on_layers_computed(const ComputedLayers& piece) = 0;
  // A kSender sequence sampled its one token, which only the listener hears of: it decides when the
  // token is sent on. finish != kNone: nothing to hand over.
  virtual void on_prefilled(const RequestKey& key, int32_t token, float logprob,
                            std::vector<std::pair<int32_t, float>> top_logprobs, FinishReason finish) = 0;
  // A sequence that was added or joined is over (finished or cancelled), its blocks are released
  // (kAlone, joined). Of a kSender sequence only if it was cancelled; once it is scheduled, its blocks
  // stay until release().
  virtual void on_finished(const RequestKey& key, FinishReason finish) = 0;
  // The engine has stopped for good, with every sequence it had: it broke an invariant of its own.
  virtual void on_failed(const std::string& /*message*/) {}
};

// Thread rule: any thread; each returns at once. csrc/engine/engine.h has the contract of each method.
class EnginePort {
 public:
  virtual ~EnginePort() = default;

  virtual void set_listener(EngineListener* listener) = 0;
  virtual void stop() = 0;

  virtual void validate(const SequenceSpec& spec, Role role) const = 0;
  virtual void add(SequenceSpec spec, Role role) = 0;
  virtual void join(SequenceSpec spec, std::vector<int32_t> blocks) = 0;
  virtual void cancel(const RequestKey& key) = 0;
  virtual void release(const RequestKey& key) = 0;
  virtual int64_t queued_tokens() const = 0;

  virtual BlockPool& block_pool() = 0;
  virtual SlotPool& slot_pool() = 0;
  virtual const KvLayout& kv_layout() const = 0;
  virtual void* kv_pool_base() const = 0;
  virtual std::string salt(const SequenceSpec& spec) const = 0;  // of the block hash
  virtual int32_t layers_per_message() const = 0;                // of one handover message
  virtual bool caches_prefixes() const = 0;
  virtual int64_t vocab_size() const = 0;
};

}  // namespace rtp_llm
