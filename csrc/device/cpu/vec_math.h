// exp, log, erf and friends on 16 lanes, with fixed algorithms: no libm.
#pragma once

#include "device/cpu/vec.h"

namespace rtp_llm::cpu {

inline constexpr float kInfinity = __builtin_inff();

// Nearest integer, ties to even, as a float; REQUIRES: |x| < 2^22.
RTP_INLINE F32x16 round_even(const F32x16& x) {
  const F32x16 magic = splat(12582912.0f);  // 1.5 * 2^23
  return (x + magic) - magic;
}

// 2^n for integral n in [-126, 127].
RTP_INLINE F32x16 power_of_two(const F32x16& n) {
  const F32x16 biased = n + splat(12582912.0f + 127.0f);  // the integer lies in the low mantissa bits
  return bit_cast16<F32x16>(shift_left<23>(bit_cast16<U32x16>(biased)));
}

// e^x; below -87.3 exactly 0, above 88.7 infinity. Error about 1 ulp.
// Source of the coefficients: Cephes expf.
RTP_INLINE F32x16 exp(const F32x16& x) {
  const F32x16 low = splat(-87.33654f);
  const F32x16 high = splat(88.72283f);
  const F32x16 clamped = min(max(x, low), high);
  const F32x16 n = round_even(clamped * splat(1.44269504088896341f));
  F32x16 r = fma(n, splat(-0.693359375f), clamped);
  r = fma(n, splat(2.12194440e-4f), r);
  F32x16 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + splat(1.0f);
  // n may be 128: scale in two steps.
  const F32x16 half = round_even(n * splat(0.5f));
  const F32x16 y = p * power_of_two(half) * power_of_two(n - half);
  const F32x16 bounded = select(greater(x, high), splat(kInfinity), y);
  return select(less(x, low), zero(), bounded);
}

// Natural logarithm; REQUIRES: x positive, finite, normal. Error about 1 ulp.
// Source of the coefficients: Cephes logf.
RTP_INLINE F32x16 log(const F32x16& x) {
  const U32x16 bits = bit_cast16<U32x16>(x);
  F32x16 mantissa = bit_cast16<F32x16>((bits & splat_u32(0x007fffff)) | splat_u32(0x3f000000));
  F32x16 exponent = to_float(bit_cast16<I32x16>(shift_right<23>(bits)) - splat_i32(126));
  const I32x16 small = less(mantissa, splat(0.707106781186547524f));
  exponent = select(small, exponent - splat(1.0f), exponent);
  mantissa = select(small, mantissa + mantissa, mantissa);
  const F32x16 f = mantissa - splat(1.0f);
  const F32x16 z = f * f;
  F32x16 p = splat(7.0376836292e-2f);
  p = fma(p, f, splat(-1.1514610310e-1f));
  p = fma(p, f, splat(1.1676998740e-1f));
  p = fma(p, f, splat(-1.2420140846e-1f));
  p = fma(p, f, splat(1.4249322787e-1f));
  p = fma(p, f, splat(-1.6668057665e-1f));
  p = fma(p, f, splat(2.0000714765e-1f));
  p = fma(p, f, splat(-2.4999993993e-1f));
  p = fma(p, f, splat(3.3333331174e-1f));
  F32x16 y = p * f * z;
  y = fma(exponent, splat(-2.12194440e-4f), y);
  y = fma(z, splat(-0.5f), y);
  return fma(exponent, splat(0.693359375f), f + y);
}

RTP_INLINE float exp_scalar(float x) { return exp(splat(x)).part[0][0]; }
RTP_INLINE float log_scalar(float x) { return log(splat(x)).part[0][0]; }

RTP_INLINE F32x16 absolute(const F32x16& x) {
  return bit_cast16<F32x16>(bit_cast16<U32x16>(x) & splat_u32(0x7fffffff));
}

RTP_INLINE F32x16 with_sign_of(const F32x16& magnitude, const F32x16& sign) {
  return bit_cast16<F32x16>(bit_cast16<U32x16>(magnitude) | (bit_cast16<U32x16>(sign) & splat_u32(0x80000000u)));
}

RTP_INLINE F32x16 sigmoid(const F32x16& x) { return splat(1.0f) / (splat(1.0f) + exp(zero() - x)); }

// 1 - 2 / (e^2x + 1); near 0 the odd polynomial of Cephes tanhf.
RTP_INLINE F32x16 tanh(const F32x16& x) {
  const F32x16 a = absolute(x);
  const F32x16 far = splat(1.0f) - splat(2.0f) / (exp(a + a) + splat(1.0f));
  const F32x16 z = x * x;
  F32x16 p = splat(-5.70498872745e-3f);
  p = fma(p, z, splat(2.06390887954e-2f));
  p = fma(p, z, splat(-5.37397155531e-2f));
  p = fma(p, z, splat(1.33314422036e-1f));
  p = fma(p, z, splat(-3.33332819422e-1f));
  const F32x16 near = fma(p * z, a, a);
  return with_sign_of(select(less(a, splat(0.625f)), near, far), x);
}

// Near 0 the odd polynomial of Cephes erff (ndtrf.c); beyond 1 the complement
// t * exp(-x^2 + q(t)), t = 1 / (1 + x / 2). Source: Numerical Recipes, erfcc, error below 1.2e-7.
RTP_INLINE F32x16 erf(const F32x16& x) {
  const F32x16 a = absolute(x);
  const F32x16 z = x * x;
  F32x16 p = splat(7.853861353153693e-5f);
  p = fma(p, z, splat(-8.010193625184903e-4f));
  p = fma(p, z, splat(5.188327685732524e-3f));
  p = fma(p, z, splat(-2.685381193529856e-2f));
  p = fma(p, z, splat(1.128358514861418e-1f));
  p = fma(p, z, splat(-3.761262582423300e-1f));
  p = fma(p, z, splat(1.128379165726710f));
  const F32x16 near = p * a;
  const F32x16 t = splat(1.0f) / fma(a, splat(0.5f), splat(1.0f));
  F32x16 q = splat(0.17087277f);
  q = fma(q, t, splat(-0.82215223f));
  q = fma(q, t, splat(1.48851587f));
  q = fma(q, t, splat(-1.13520398f));
  q = fma(q, t, splat(0.27886807f));
  q = fma(q, t, splat(-0.18628806f));
  q = fma(q, t, splat(0.09678418f));
  q = fma(q, t, splat(0.37409196f));
  q = fma(q, t, splat(1.00002368f));
  q = fma(q, t, splat(-1.26551223f));
  const F32x16 far = splat(1.0f) - t * exp(q - z);
  return with_sign_of(select(less(a, splat(1.0f)), near, far), x);
}

}  // namespace rtp_llm::cpu
