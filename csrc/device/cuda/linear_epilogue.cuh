// What follows the sums of a linear, the same in all kernels: + bias, + residual, one rounding; or the gated
// activation.
#pragma once

#include "device/cuda/linear.h"
#include "device/cuda/math.cuh"
#include "device/cuda/ptx.cuh"

namespace rtp_llm::cuda {

// What the device code needs of a LinearProblem besides its operands.
struct Epilogue {
  void* out;
  const bf16* residual;
  const float* bias;
  int64_t out_stride, residual_stride;
  int rows, out_features;
  Activation activation;
};

inline Epilogue epilogue_of(const LinearProblem& problem) {
  return {.out = problem.out,
          .residual = problem.residual,
          .bias = problem.bias,
          .out_stride = problem.out_stride,
          .residual_stride = problem.residual_stride,
          .rows = problem.rows,
          .out_features = problem.out_features,
          .activation = problem.activation};
}

__device__ __forceinline__ float finished(float sum, const float* bias, int column, float residual, bool has_residual) {
  if (bias != nullptr) sum = __fadd_rn(sum, bias[column]);
  return has_residual ? __fadd_rn(sum, residual) : sum;
}

// Not inlined: three activations for each output would be most of a kernel's code.
static __device__ __noinline__ float activate_other(float gate, Activation activation) {
  return activation == Activation::kGelu ? activate<Activation::kGelu>(gate) : activate<Activation::kGeluTanh>(gate);
}

// act(gate) * up of two values as bf16, gates and ups rounded to bf16 first. In pairs: a conversion of one value goes
// through a unit that is a quarter as fast.
template <bool kIsSilu>
__device__ __forceinline__ uint32_t gated_words(uint32_t gates, uint32_t ups, Activation activation) {
  const auto value = [&](float gate, float up) {
    return __fmul_rn(kIsSilu ? activate<Activation::kSilu>(gate) : activate_other(gate, activation), up);
  };
  return pack_bf16(value(low_bf16(gates), low_bf16(ups)), value(high_bf16(gates), high_bf16(ups)));
}
template <bool kIsSilu>
__device__ __forceinline__ uint32_t gated_pair(float gate_0, float gate_1, float up_0, float up_1,
                                               Activation activation) {
  return gated_words<kIsSilu>(pack_bf16(gate_0, gate_1), pack_bf16(up_0, up_1), activation);
}
__device__ __forceinline__ uint32_t gated_pair(float gate_0, float gate_1, float up_0, float up_1,
                                               Activation activation) {
  return activation == Activation::kSilu ? gated_pair<true>(gate_0, gate_1, up_0, up_1, activation)
                                         : gated_pair<false>(gate_0, gate_1, up_0, up_1, activation);
}
__device__ __forceinline__ bf16 low_half(uint32_t pair) { return __ushort_as_bfloat16(static_cast<uint16_t>(pair)); }
__device__ __forceinline__ bf16 high_half(uint32_t pair) {
  return __ushort_as_bfloat16(static_cast<uint16_t>(pair >> 16));
}

__device__ __forceinline__ float4 add(const float4& a, const float4& b) {
  return {__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w)};
}

// The sum of 2 or 4 leaves as a binary tree; load(leaf) gives a leaf's sums.
template <class Load>
__device__ __forceinline__ float4 tree_sum(int leaves, Load&& load) {
  const float4 left = add(load(0), load(1));
  return leaves == 2 ? left : add(left, add(load(2), load(3)));
}

}  // namespace rtp_llm::cuda
