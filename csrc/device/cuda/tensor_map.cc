#include "device/cuda/tensor_map.h"

#include <cuda_runtime.h>

#include "device/cuda/cuda_check.h"

namespace rtp_llm::cuda {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's function, found through the runtime so that nothing links against libcuda.
Encode driver_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
             "cuTensorMapEncodeTiled");
  if (result != cudaDriverEntryPointSuccess || found == nullptr)
    throw Error("CUDA: this driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<Encode>(found);
}

}  // namespace

CUtensorMap make_tensor_map(const RowBoxes& boxes) {
  static const Encode encode = driver_encode();
  check(reinterpret_cast<uintptr_t>(boxes.x) % 16 == 0 && boxes.stride % 8 == 0,
        "linear: x must lie on 16 bytes with a", " row stride of a multiple of 8, got stride ", boxes.stride);
  const cuuint64_t extents[2] = {static_cast<cuuint64_t>(boxes.features), static_cast<cuuint64_t>(boxes.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(boxes.stride) * sizeof(__nv_bfloat16)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(boxes.box_features), static_cast<cuuint32_t>(boxes.box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  CUtensorMap map;
  const CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<__nv_bfloat16*>(boxes.x),
                                 extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 boxes.swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw Error(concat("CUDA: tensor map of [", boxes.rows, ", ", boxes.features, "] with row stride ", boxes.stride,
                       " refused: ", static_cast<int>(status)));
  return map;
}

}  // namespace rtp_llm::cuda
