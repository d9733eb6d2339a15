// Typed access to rows of activations: f32 or bf16 behind one lambda.
#pragma once

#include "tensor/tensor.h"

namespace rtp_llm::cpu {

// Calls body(typed pointer) with float* or BFloat16*. Throws InvalidArgument for other types.
template <class Body>
void with_type(const char* op, DType dtype, void* data, Body body) {
  if (dtype == DType::kF32) return body(static_cast<float*>(data));
  check(dtype == DType::kBF16, op, ": activations must be float32 or bfloat16, got ", name_of(dtype));
  body(static_cast<BFloat16*>(data));
}

template <class T>
T* row_of(const Tensor& x, int64_t row) {
  return static_cast<T*>(x.data) + row * x.stride[0];
}

inline void check_features(const char* op, const char* name, const Tensor& x, int64_t rows, int64_t features) {
  check(x.ndim == 2 && x.shape[0] == rows && x.shape[1] == features && (features <= 1 || x.stride[1] == 1), op, ": ",
        name, " must be [", rows, ", ", features, "] with contiguous features, got [", x.shape[0], ", ", x.shape[1],
        "]");
}

}  // namespace rtp_llm::cpu
