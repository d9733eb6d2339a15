// QTensor: a tensor that may be quantized. Stands wherever an op takes a weight or writes a quantized output;
// without scales it is its `data`.
#pragma once

#include "tensor/tensor.h"

namespace rtp_llm {

struct QTensor {
  Tensor data;
  Tensor scales;       // empty when not quantized
  Tensor zero_points;  // empty when symmetric

  QTensor() = default;
  QTensor(Tensor plain) : data(plain) {}  // NOLINT: implicit by intent

  bool quantized() const { return !scales.empty(); }
};

}  // namespace rtp_llm
