// Executor: runs a schedule on the device, as two launches: forward and sample.
//
// It owns what the device needs for that: KV bytes, slots, two batches, workspace. It decides nothing.
// Thread rule: engine thread only, after construction.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>

#include "device/device.h"
#include "engine/batch.h"
#include "engine/engine.h"
#include "engine/kv_cache.h"
#include "engine/slot_table.h"
#include "model/decoder.h"

namespace rtp_llm {

class Executor {
 public:
  // Allocates. `max_rows`: most rows of a step. REQUIRES: device and decoder outlive it.
  Executor(Device& device, Decoder& decoder, const EngineConfig& config, int64_t max_rows);

  // Runs the largest legal step once; returns its rows and seconds. Leaves a zero pool.
  std::pair<int64_t, double> warm_up();

  // Binds slots, zeroes fresh blocks, fills the batch that is not in use.
  Batch& prepare(const Schedule& schedule);
  // `on_layers(first_layer, num_layers)` as each layer group is stored.
  void forward(Batch& batch, const std::function<void(int, int)>& on_layers);
  void sample(Batch& batch);

  KvCache& kv_cache() { return kv_cache_; }
  const KvCache& kv_cache() const { return kv_cache_; }

 private:
  Device& device_;
  Decoder& decoder_;
  const EngineConfig& config_;
  const int64_t max_rows_;
  KvCache kv_cache_;
  SlotTable slot_table_;
  Batch batches_[2];
  int next_batch_ = 0;
  Buffer workspace_;
  Tensor logits_;  // of the last forward
};

}  // namespace rtp_llm
