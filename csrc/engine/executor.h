// Executor: launches a schedule on the device: forward and sample, and the copies before and after them.
//
// It owns what the device needs for that: KV bytes, slots, two batches, workspace. It decides nothing.
// Thread rule: engine thread only, after construction.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>

#include "device/device.h"
#include "engine/batch.h"
#include "engine/engine_config.h"
#include "engine/kv_cache.h"
#include "engine/slot_table.h"
#include "model/decoder.h"

namespace rtp_llm {

class Executor {
 public:
  // Allocates. REQUIRES: device, decoder and config outlive it.
  Executor(Device& device, Decoder& decoder, const EngineConfig& config);

  // Runs the largest legal step once; returns its rows and seconds. Leaves a zero pool.
  std::pair<int64_t, double> warm_up();

  // Fills the batch that is not in use, launches its upload, the zeroing of fresh blocks and the writes into slots.
  // REQUIRES: the step before the last one has ended.
  Batch& prepare(const Schedule& schedule);
  // `on_layers(first_layer, num_layers)` as the stores of each layer group are launched. A step of decode rows alone is
  // replayed from a graph where the device has them, sampling too; on_layers isn't called then, as no row is a
  // sender's.
  void forward(Batch& batch, const std::function<void(int, int)>& on_layers);
  // Samples; what was sampled is in batch.host when an event recorded afterwards is done.
  void sample(Batch& batch);

  KvCache& kv_cache() { return kv_cache_; }
  const KvCache& kv_cache() const { return kv_cache_; }

 private:
  // Rows of the graph that a step is replayed from: the next bucket; 0: it isn't.
  int64_t graph_rows(const Batch& batch) const;
  void replay(Batch& batch, int64_t rows);
  void launch_forward(Batch& batch, const StepRows& rows, int64_t num_samples,
                      const std::function<void(int, int)>& on_layers);
  void launch_sample(Batch& batch, const StepRows& rows, int64_t num_samples);
  void warm_up_graphs();
  StepLimits step_limits() const;
  void launch_inputs(Batch& batch);
  void zero_first_blocks(int num_blocks);

  Device& device_;
  Decoder& decoder_;
  const EngineConfig& config_;
  const int64_t max_rows_;
  const int64_t max_graph_rows_;
  KvCache kv_cache_;
  SlotTable slot_table_;
  Batch batches_[2];
  int next_batch_ = 0;
  Buffer workspace_;
  Tensor logits_;  // of the last forward
};

}  // namespace rtp_llm
