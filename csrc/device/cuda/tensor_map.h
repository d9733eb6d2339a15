// tensor_map: rows of activations as the tensor copy engine sees them.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

namespace rtp_llm::cuda {

struct RowBoxes {
  const __nv_bfloat16* x = nullptr;  // 16-byte aligned
  int64_t rows = 0, features = 0;    // outside of these a box reads zeros
  int64_t stride = 0;                // elements, a multiple of 8
  int box_rows = 1, box_features = 64;
  bool swizzle = true;  // 128-byte rows, 16-byte pieces exchanged by row % 8; REQUIRES: box_features == 64
};

// Throws InvalidArgument for what the copy engine can't take, Error if the driver refuses.
CUtensorMap make_tensor_map(const RowBoxes& boxes);

}  // namespace rtp_llm::cuda
