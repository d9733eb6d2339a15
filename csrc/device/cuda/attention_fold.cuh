// The one fold of this backend's attention. Every kernel, whatever its schedule, gives a row the bits of this text:
//
//   Blocks are the 128 positions at absolute multiples of 128, units the 16 positions at multiples of 16 in them.
//   s       one chain of multiply_add over head_dim in steps of 16, from zero; -inf where the row may not look
//   m       rn(max(s of the block) * c), c = scale * log2(e)
//   p       bf16(ex2(fma(s, c, -m)))
//   o, l    one chain of multiply_add over the block's units in order, from zero: p V, and p times ones
//   merge   blocks from left to right into (M, L, O), which starts as (-inf, 0, 0):
//           N = max(M, m), a = ex2(M - N), b = ex2(m - N), L = fma(L, a, rn(l b)), O = fma(O, a, rn(o b)), M = N
//   result  bf16(O / L), the quotient by Quotient below
//
// A merge into the empty state gives the block's own bits, so a block may be folded anywhere and merged later. Units
// that the row may not see add exact zeros and may be left out. V of positions behind the sequence's end is never
// multiplied as it lies in memory (0 * NaN is NaN); K there may be anything.
#pragma once

#include "device/cuda/ptx.cuh"

namespace rtp_llm::cuda {

inline constexpr int kBlockPositions = 128;
inline constexpr int kUnitPositions = 16;
inline constexpr uint32_t kOnes = 0x3f803f80u;  // two bf16 ones
inline constexpr float kNothing = -__builtin_huge_valf();

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// m of a block, from the maximum of its raw scores.
__device__ __forceinline__ float block_maximum(float raw, float log2_scale) { return __fmul_rn(raw, log2_scale); }

// p before its rounding to bf16 (pack_bf16).
__device__ __forceinline__ float weight_of(float score, float log2_scale, float maximum) {
  return exp2_fast(__fmaf_rn(score, log2_scale, -maximum));
}

// The factors of one merge; `running` becomes the new maximum.
struct MergeFactors {
  float old_part, new_part;
};
__device__ __forceinline__ MergeFactors merge_maximum(float& running, float maximum) {
  const float next = fmaxf(running, maximum);
  const MergeFactors factors{exp2_fast(__fsub_rn(running, next)), exp2_fast(__fsub_rn(maximum, next))};
  running = next;
  return factors;
}
__device__ __forceinline__ float merge(float running, float value, MergeFactors factors) {
  return __fmaf_rn(running, factors.old_part, __fmul_rn(value, factors.new_part));
}

// O / L for many O of one L: a reciprocal refined once, then one correction a quotient. Correctly rounded for normal
// numbers; where the rest underflows it may not be, but is the same in every kernel.
class Quotient {
 public:
  __device__ explicit Quotient(float sum) : sum_(sum) {
    float first;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(first) : "f"(sum));
    reciprocal_ = __fmaf_rn(__fmaf_rn(-sum, first, 1.0f), first, first);
  }
  __device__ float of(float total) const {
    const float quotient = __fmul_rn(total, reciprocal_);
    return __fmaf_rn(__fmaf_rn(-sum_, quotient, total), reciprocal_, quotient);
  }

 private:
  float sum_, reciprocal_;
};

}  // namespace rtp_llm::cuda
