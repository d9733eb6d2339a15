#include "device/cpu/cpu_ops.h"

namespace rtp_llm::cpu {

CpuOps::CpuOps(Device& device, int num_threads)
    : device_(device),
      pool_(num_threads),
      linear_input_(device, "cpu.linear_input"),
      attention_scratch_(device, "cpu.attention") {}

// bf16 weights multiply bf16 inputs; sums, and so the stream, stay in f32.
ActivationTypes CpuOps::activation_types(DType weight_dtype) const {
  return {.stream = DType::kF32, .input = weight_dtype, .qkv = DType::kF32};
}

}  // namespace rtp_llm::cpu
