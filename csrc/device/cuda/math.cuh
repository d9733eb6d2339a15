// exp, log and the activations, one lane: the algorithms and coefficients of cpu/vec_math.h, so that the bits of a
// function are the CPU's. Division and square root are correctly rounded (nvcc's default).
#pragma once

#include <cuda_runtime.h>

#include "device/ops.h"

namespace rtp_llm::cuda {

inline constexpr float kInfinity = __builtin_huge_valf();

// Nearest integer, ties to even; REQUIRES: |x| < 2^22.
__device__ __forceinline__ float round_even(float x) { return __fsub_rn(__fadd_rn(x, 12582912.0f), 12582912.0f); }

// 2^n for integral n in [-126, 127].
__device__ __forceinline__ float power_of_two(float n) {
  return __uint_as_float(__float_as_uint(__fadd_rn(n, 12582912.0f + 127.0f)) << 23);
}

// e^x; below -87.3 exactly 0, above 88.7 infinity. Source: Cephes expf.
__device__ __forceinline__ float exp_f32(float x) {
  const float low = -87.33654f, high = 88.72283f;
  const float clamped = fminf(fmaxf(x, low), high);
  const float n = round_even(__fmul_rn(clamped, 1.44269504088896341f));
  float r = __fmaf_rn(n, -0.693359375f, clamped);
  r = __fmaf_rn(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = __fmaf_rn(p, r, 1.3981999507e-3f);
  p = __fmaf_rn(p, r, 8.3334519073e-3f);
  p = __fmaf_rn(p, r, 4.1665795894e-2f);
  p = __fmaf_rn(p, r, 1.6666665459e-1f);
  p = __fmaf_rn(p, r, 5.0000001201e-1f);
  p = __fadd_rn(__fmaf_rn(p, __fmul_rn(r, r), r), 1.0f);
  const float half = round_even(__fmul_rn(n, 0.5f));
  const float y = __fmul_rn(__fmul_rn(p, power_of_two(half)), power_of_two(__fsub_rn(n, half)));
  return x < low ? 0.0f : x > high ? kInfinity : y;
}

// Natural logarithm; REQUIRES: x positive, finite, normal. Source: Cephes logf.
__device__ __forceinline__ float log_f32(float x) {
  const uint32_t bits = __float_as_uint(x);
  float mantissa = __uint_as_float((bits & 0x007fffffu) | 0x3f000000u);
  float exponent = static_cast<float>(static_cast<int32_t>(bits >> 23) - 126);
  if (mantissa < 0.707106781186547524f) {
    exponent -= 1.0f;
    mantissa += mantissa;
  }
  const float f = mantissa - 1.0f;
  const float z = __fmul_rn(f, f);
  float p = 7.0376836292e-2f;
  p = __fmaf_rn(p, f, -1.1514610310e-1f);
  p = __fmaf_rn(p, f, 1.1676998740e-1f);
  p = __fmaf_rn(p, f, -1.2420140846e-1f);
  p = __fmaf_rn(p, f, 1.4249322787e-1f);
  p = __fmaf_rn(p, f, -1.6668057665e-1f);
  p = __fmaf_rn(p, f, 2.0000714765e-1f);
  p = __fmaf_rn(p, f, -2.4999993993e-1f);
  p = __fmaf_rn(p, f, 3.3333331174e-1f);
  float y = __fmul_rn(__fmul_rn(p, f), z);
  y = __fmaf_rn(exponent, -2.12194440e-4f, y);
  y = __fmaf_rn(z, -0.5f, y);
  return __fmaf_rn(exponent, 0.693359375f, __fadd_rn(f, y));
}

// By the special-function unit, unlike the CPU's: the epilogue of gate_up computes it for every sum. Relative error
// below 2^-17 for |x| < 60; one instruction sequence everywhere, so the bits are the same in every kernel.
__device__ __forceinline__ float sigmoid(float x) {
  float power, inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(__fmul_rn(x, -1.44269504088896341f)));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(__fadd_rn(1.0f, power)));
  return inverse;
}

// Near 0 the odd polynomial of Cephes tanhf, else 1 - 2 / (e^2x + 1).
__device__ __forceinline__ float tanh_f32(float x) {
  const float a = fabsf(x), z = __fmul_rn(x, x);
  const float far = __fsub_rn(1.0f, __fdiv_rn(2.0f, __fadd_rn(exp_f32(a + a), 1.0f)));
  float p = -5.70498872745e-3f;
  p = __fmaf_rn(p, z, 2.06390887954e-2f);
  p = __fmaf_rn(p, z, -5.37397155531e-2f);
  p = __fmaf_rn(p, z, 1.33314422036e-1f);
  p = __fmaf_rn(p, z, -3.33332819422e-1f);
  return copysignf(a < 0.625f ? __fmaf_rn(__fmul_rn(p, z), a, a) : far, x);
}

// Near 0 the odd polynomial of Cephes erff; beyond 1 the complement of Numerical Recipes' erfcc.
__device__ __forceinline__ float erf_f32(float x) {
  const float a = fabsf(x), z = __fmul_rn(x, x);
  float p = 7.853861353153693e-5f;
  p = __fmaf_rn(p, z, -8.010193625184903e-4f);
  p = __fmaf_rn(p, z, 5.188327685732524e-3f);
  p = __fmaf_rn(p, z, -2.685381193529856e-2f);
  p = __fmaf_rn(p, z, 1.128358514861418e-1f);
  p = __fmaf_rn(p, z, -3.761262582423300e-1f);
  p = __fmaf_rn(p, z, 1.128379165726710f);
  if (a < 1.0f) return copysignf(__fmul_rn(p, a), x);
  const float t = __fdiv_rn(1.0f, __fmaf_rn(a, 0.5f, 1.0f));
  float q = 0.17087277f;
  q = __fmaf_rn(q, t, -0.82215223f);
  q = __fmaf_rn(q, t, 1.48851587f);
  q = __fmaf_rn(q, t, -1.13520398f);
  q = __fmaf_rn(q, t, 0.27886807f);
  q = __fmaf_rn(q, t, -0.18628806f);
  q = __fmaf_rn(q, t, 0.09678418f);
  q = __fmaf_rn(q, t, 0.37409196f);
  q = __fmaf_rn(q, t, 1.00002368f);
  q = __fmaf_rn(q, t, -1.26551223f);
  return copysignf(__fsub_rn(1.0f, __fmul_rn(t, exp_f32(__fsub_rn(q, z)))), x);
}

template <Activation kActivation>
__device__ __forceinline__ float activate(float x) {
  if constexpr (kActivation == Activation::kSilu) return __fmul_rn(x, sigmoid(x));
  const float half = __fmul_rn(x, 0.5f);
  if constexpr (kActivation == Activation::kGelu)
    return __fmul_rn(half, __fadd_rn(1.0f, erf_f32(__fmul_rn(x, 0.70710678118654752f))));
  const float cubic = __fmaf_rn(__fmul_rn(__fmul_rn(x, x), x), 0.044715f, x);
  return __fmul_rn(half, __fadd_rn(1.0f, tanh_f32(__fmul_rn(cubic, 0.79788456080286536f))));
}

}  // namespace rtp_llm::cuda
