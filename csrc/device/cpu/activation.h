// Activations of a gated MLP, 16 lanes at a time.
#pragma once

#include "device/cpu/vec_math.h"
#include "device/ops.h"

namespace rtp_llm::cpu {

template <Activation kActivation>
RTP_INLINE F32x16 activate(const F32x16& x) {
  if constexpr (kActivation == Activation::kSilu) return x * sigmoid(x);
  const F32x16 half = x * splat(0.5f);
  if constexpr (kActivation == Activation::kGelu) return half * (splat(1.0f) + erf(x * splat(0.70710678118654752f)));
  const F32x16 cubic = fma(x * x * x, splat(0.044715f), x);
  return half * (splat(1.0f) + tanh(cubic * splat(0.79788456080286536f)));
}

// Calls run<activation>().
template <class Run>
void with_activation(Activation activation, Run& run) {
  switch (activation) {
    case Activation::kSilu: return run.template operator()<Activation::kSilu>();
    case Activation::kGelu: return run.template operator()<Activation::kGelu>();
    case Activation::kGeluTanh: return run.template operator()<Activation::kGeluTanh>();
  }
}

}  // namespace rtp_llm::cpu
