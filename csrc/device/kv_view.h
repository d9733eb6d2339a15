// KvView: one layer of the paged KV pool, as kernels address it.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace rtp_llm {

// What a kernel needs to address one layer of one group: base and byte strides.
// address(block, plane, head, token) = base + block * block_stride + plane_offset[plane] + head * head_stride + token *
// token_stride
struct KvView {
  uint8_t* base = nullptr;   // pool base + offset of the layer within a block
  int64_t block_stride = 0;  // bytes
  int64_t plane_offset[2] = {0, 0};
  int64_t head_stride = 0;   // bytes: block_tokens * token_stride
  int64_t token_stride = 0;  // bytes: head_dim * size_of(dtype)
  int num_heads = 0;
  int head_dim = 0;
  int block_tokens = 0;
  int64_t num_blocks = 0;
  DType dtype = DType::kF32;
};

}  // namespace rtp_llm
