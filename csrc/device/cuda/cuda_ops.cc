#include "device/cuda/cuda_ops.h"

#include "device/cuda/checksum.h"
#include "device/cuda/packed_linear.h"

namespace rtp_llm::cuda {

CudaOps::CudaOps(CudaDevice& device, int tree_leaves)
    : device_(device),
      tree_leaves_(tree_leaves),
      upload_(std::make_unique<UploadRing>(device)),
      attention_counters_(device.allocate(PagedAttention::counter_bytes(), "attention.counters")),
      attention_(device.properties().major, device.properties().num_sms,
                 static_cast<uint32_t*>(attention_counters_.data())),
      checksum_(std::make_unique<ChecksumSum>(device)) {}

CudaOps::~CudaOps() = default;

ActivationTypes CudaOps::activation_types(DType weight_dtype) const {
  check(weight_dtype == DType::kBF16, "backend 'cuda': weights of ", name_of(weight_dtype),
        " are not supported, bfloat16 is");
  return {.stream = DType::kBF16, .input = DType::kBF16, .qkv = DType::kBF16};
}

}  // namespace rtp_llm::cuda
