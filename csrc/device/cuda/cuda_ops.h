// CudaOps: every op of this backend on one GPU's main stream. One .cu file per op; this header is their table of
// contents. Weights and inputs are bf16; sums are fp32; each result is rounded once.
#pragma once

#include <memory>

#include "device/cuda/attention.h"
#include "device/cuda/cuda_device.h"
#include "device/cuda/linear.h"
#include "device/ops.h"

namespace rtp_llm::cuda {

class ChecksumSum;
class UploadRing;

// Leaves of the tree that sums over K where tensor parallelism splits it (LinearSpec::row_parallel). Two make decode
// faster and cost at most 2% of a layer's linears in prefill; four cost 9% (docs/cuda.md).
inline constexpr int kTreeLeaves = 2;  // unless DeviceOptions say otherwise

// The kernels' view of an op's arguments. Throws InvalidArgument in the name of `op`.
RopeStoreProblem rope_store_of(const char* op, const QkvRopeStoreArgs& args);

class CudaOps final : public Ops {
 public:
  CudaOps(CudaDevice& device, int tree_leaves);
  ~CudaOps() override;

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

  void add_rms_norm(const AddRmsNormArgs& args) override;
  void qkv_rope_store(const QkvRopeStoreArgs& args) override;
  int64_t rope_table_bytes(int64_t max_rows, int head_dim) const override;
  void rope_table(const RopeTableArgs& args) override;
  void linear_rope_store(const LinearArgs& linear, const QkvRopeStoreArgs& rope) override;
  void rope_store_decode(const QkvRopeStoreArgs& rope, const AttentionArgs& attention) override;
  void gated_mlp(const GatedMlpArgs& args) override;

  CudaDevice& device() { return device_; }
  // Also makes the GPU the calling thread's: whichever thread runs the ops.
  cudaStream_t stream() const {
    device_.bind_thread();
    return device_.stream();
  }

 private:
  void run(const LinearProblem& problem);
  void decode(const AttentionArgs& args, const QkvRope& rope);

  CudaDevice& device_;
  const int tree_leaves_;
  std::unique_ptr<UploadRing> upload_;
  Buffer attention_counters_;
  PagedAttention attention_;
  std::unique_ptr<ChecksumSum> checksum_;
};

}  // namespace rtp_llm::cuda
