// Tensor: a view of device memory. It owns nothing and is passed by value.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>

#include "tensor/check.h"
#include "tensor/dtype.h"

namespace rtp_llm {

struct Tensor {
  static constexpr int kMaxDims = 4;

  void* data = nullptr;
  DType dtype = DType::kF32;
  int ndim = 0;
  std::array<int64_t, kMaxDims> shape{};   // elements
  std::array<int64_t, kMaxDims> stride{};  // elements, not bytes

  bool empty() const { return data == nullptr; }

  int64_t numel() const {
    int64_t count = 1;
    for (int i = 0; i < ndim; ++i) count *= shape[i];
    return count;
  }

  bool contiguous() const {
    int64_t expected = 1;
    for (int i = ndim - 1; i >= 0; --i) {
      if (shape[i] != 1 && stride[i] != expected) return false;
      expected *= shape[i];
    }
    return true;
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }

  // Rows [first, first + count) of the first dimension. REQUIRES: ndim > 0, first + count <= shape[0].
  Tensor rows(int64_t first, int64_t count) const {
    check(ndim > 0 && first >= 0 && first + count <= shape[0], "rows [", first, ", ", first + count,
          ") out of range, tensor has ", shape[0]);
    Tensor view = *this;
    view.data = static_cast<uint8_t*>(data) + first * stride[0] * size_of(dtype);
    view.shape[0] = count;
    return view;
  }

  // Columns [first, first + count) of the last dimension.
  Tensor columns(int64_t first, int64_t count) const {
    check(ndim > 0 && first >= 0 && first + count <= shape[ndim - 1], "columns [", first, ", ", first + count,
          ") out of range, tensor has ", shape[ndim - 1]);
    Tensor view = *this;
    view.data = static_cast<uint8_t*>(data) + first * stride[ndim - 1] * size_of(dtype);
    view.shape[ndim - 1] = count;
    return view;
  }

  // [M, num_heads, head_dim] of [M, num_heads * head_dim].
  Tensor heads(int64_t num_heads, int64_t head_dim) const {
    check(ndim == 2 && shape[1] == num_heads * head_dim, "heads: ", num_heads, " of ", head_dim, ", tensor has ",
          ndim == 2 ? shape[1] : 0, " columns");
    Tensor view = *this;
    view.ndim = 3;
    view.shape = {shape[0], num_heads, head_dim};
    view.stride = {stride[0], head_dim, 1};
    return view;
  }
};

// A contiguous view of `data` with the given shape.
inline Tensor make_tensor(void* data, DType dtype, std::initializer_list<int64_t> shape) {
  check(shape.size() <= Tensor::kMaxDims, "a tensor has at most ", Tensor::kMaxDims, " dimensions, got ", shape.size());
  Tensor tensor{.data = data, .dtype = dtype, .ndim = static_cast<int>(shape.size())};
  int i = 0;
  for (int64_t extent : shape) tensor.shape[i++] = extent;
  int64_t step = 1;
  for (i = tensor.ndim - 1; i >= 0; --i) {
    tensor.stride[i] = step;
    step *= tensor.shape[i];
  }
  return tensor;
}

}  // namespace rtp_llm
