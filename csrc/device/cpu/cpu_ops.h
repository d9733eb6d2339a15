// CpuOps: every op of level 0 on the CPU. One .cc file per op; this header is their table of contents.
#pragma once

#include <memory>
#include <vector>

#include "device/cpu/rope_cache.h"
#include "device/cpu/scratch.h"
#include "device/cpu/thread_pool.h"
#include "device/ops.h"

namespace rtp_llm::cpu {

// A piece of attention: rows [first_row, first_row + rows) at positions from `position`, one kv head.
struct AttentionItem {
  int32_t slot;
  int64_t first_row;
  int64_t rows;
  int64_t position;
  int kv_head;
  int64_t stretch;  // of 512 positions; -1: all of the context
  int64_t partial;  // place of the result in the workspace, if one stretch only
};

class CpuOps final : public Ops {
 public:
  // Throws InvalidArgument for options that the CPU can't have.
  CpuOps(Device& device, const DeviceOptions& options);

  bool forms_equal() const override { return true; }
  ActivationTypes activation_types(DType weight_dtype) const override;

  std::unique_ptr<LinearPacker> pack(const LinearSpec& spec) override;
  std::unique_ptr<LinearPacker> repack(PackedLinear& weight) override;

  void linear(const LinearArgs& args) override;
  void embedding(const EmbeddingArgs& args) override;
  void rms_norm(const NormArgs& args) override;
  void layer_norm(const NormArgs& args) override;
  void rope(const RopeArgs& args) override;
  void store_kv(const StoreKvArgs& args) override;
  void paged_attention_prefill(const AttentionArgs& args) override;
  void paged_attention_decode(const AttentionArgs& args) override;
  void gated_activation(const GatedActivationArgs& args) override;
  void gated_mlp(const GatedMlpArgs& args) override;
  void gather_rows(const GatherRowsArgs& args) override;
  void add(const Tensor& x, const Tensor& delta) override;
  void sample(const SampleArgs& args) override;
  void advance(const AdvanceArgs& args) override;
  void update_slots(const UpdateSlotsArgs& args) override;
  void zero_blocks(const ZeroBlocksArgs& args) override;
  int64_t attention_workspace_bytes(int64_t max_rows, int num_heads, int num_kv_heads, int head_dim,
                                    int64_t max_positions) const override;
  int64_t sample_workspace_bytes(int64_t max_rows, int64_t vocab) const override;

  uint64_t checksum(const ChecksumArgs& args) const override;

 private:
  // Runs body(row, thread) over rows, on several threads only when the work pays for it.
  template <class Body>
  void for_rows(int64_t rows, int64_t elements_per_row, Body&& body) {
    // About 16k elements (a few microseconds) a chunk.
    const int64_t per_chunk = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, elements_per_row));
    const int64_t chunks = (rows + per_chunk - 1) / per_chunk;
    pool_.run(chunks, [&](int64_t chunk, int thread) {
      const int64_t end = std::min(rows, (chunk + 1) * per_chunk);
      for (int64_t row = chunk * per_chunk; row < end; ++row) body(row, thread);
    });
  }

  // The activation as linear's kernel reads it: [M, packed K]; may be `x` itself.
  const void* linear_input(const Tensor& x, DType weight_dtype, int64_t& row_stride);

  void attention(const AttentionArgs& args, Form form);

  Device& device_;
  const int tree_leaves_;
  ThreadPool pool_;
  Scratch linear_input_;       // x converted to what the kernel multiplies
  Scratch attention_scratch_;  // tiles, scores and accumulators, one part a thread
  std::vector<RopeCache> rope_caches_;
  // Per-call lists, kept for their memory.
  std::vector<int64_t> row_positions_;
  std::vector<int32_t> tokens_;
  std::vector<AttentionItem> attention_items_;
  std::vector<AttentionItem> attention_pieces_;
};

}  // namespace rtp_llm::cpu
