// Kernels by type: from the DType of a tensor to a C++ type.
#pragma once

#include <cuda_bf16.h>

#include "tensor/tensor.h"

namespace rtp_llm::cuda {

// Calls run(value of the type). Throws InvalidArgument for what no activation has.
template <class Run>
void with_type(const char* op, DType dtype, Run&& run) {
  switch (dtype) {
    case DType::kF32: return run(float{});
    case DType::kBF16: return run(__nv_bfloat16{});
    default: check(false, op, ": type must be float32 or bfloat16, got ", name_of(dtype));
  }
}

template <class Run>
void with_types(const char* op, DType first, DType second, Run&& run) {
  with_type(op, first, [&](auto a) { with_type(op, second, [&](auto b) { run(a, b); }); });
}

}  // namespace rtp_llm::cuda
