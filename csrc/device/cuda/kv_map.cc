#include "device/cuda/kv_map.h"

#include <cuda_runtime.h>

#include "device/cuda/cuda_check.h"

namespace rtp_llm::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, without linking to the driver.
Encode encoder() {
  static const Encode found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result),
               "cuTensorMapEncodeTiled");
    if (result != cudaDriverEntryPointSuccess) throw Unavailable("the CUDA driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(function);
  }();
  return found;
}

}  // namespace

CUtensorMap kv_map(const KvView& kv, int positions) {
  const int64_t planes = kv.plane_offset[1] - kv.plane_offset[0];
  check(kv.dtype == DType::kBF16 && kv.head_dim % 64 == 0, "kv_map: bf16 with head_dim of 64s, got ", name_of(kv.dtype),
        " and ", kv.head_dim);
  check(planes > 0, "kv_map: V must lie behind K, got planes ", planes, " bytes apart");
  const cuuint64_t sizes[5] = {static_cast<cuuint64_t>(kv.head_dim), static_cast<cuuint64_t>(kv.block_tokens),
                               static_cast<cuuint64_t>(kv.num_heads), 2, static_cast<cuuint64_t>(kv.num_blocks)};
  const cuuint64_t strides[4] = {static_cast<cuuint64_t>(kv.token_stride), static_cast<cuuint64_t>(kv.head_stride),
                                 static_cast<cuuint64_t>(planes), static_cast<cuuint64_t>(kv.block_stride)};
  const cuuint32_t box[5] = {64, static_cast<cuuint32_t>(positions), 1, 1, 1}, steps[5] = {1, 1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result = encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5, kv.base + kv.plane_offset[0], sizes,
                                    strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                    CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(result == CUDA_SUCCESS, "kv_map: the driver refused a tensor map, status ", static_cast<int>(result));
  return map;
}

}  // namespace rtp_llm::cuda
