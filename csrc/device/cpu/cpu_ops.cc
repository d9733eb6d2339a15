#include "device/cpu/cpu_ops.h"

namespace rtp_llm::cpu {

namespace {

// Leaves of the tree that sums over K where tensor parallelism splits it, unless DeviceOptions say otherwise: the
// GPU's. Two cost less than 1% of a layer's linears (docs/numerics.md).
constexpr int kTreeLeaves = 2;

}  // namespace

CpuOps::CpuOps(Device& device, const DeviceOptions& options)
    : device_(device),
      tree_leaves_(checked_tree_leaves(options, kTreeLeaves)),
      pool_(options.num_threads),
      linear_input_(device, "cpu.linear_input"),
      attention_scratch_(device, "cpu.attention") {}

// bf16 weights multiply bf16 inputs; sums, and so the stream, stay in f32.
ActivationTypes CpuOps::activation_types(DType weight_dtype) const {
  return {.stream = DType::kF32, .input = weight_dtype, .qkv = DType::kF32};
}

}  // namespace rtp_llm::cpu
