// The angle of a position: its cosine and sine in fp32, a function of (position, inverse frequency) alone.
#pragma once

#include <cuda_runtime.h>

namespace rtp_llm::cuda {

struct Rotation {
  float cos, sin;
};

// The product in fp64 (exact for positions below 2^29), reduced by whole quarter turns in fp64 to |r| <= pi/4, then
// fdlibm's polynomials in fp32. Error of the results about 1 ulp.
__device__ __forceinline__ Rotation rotation_of(int position, float inv_freq) {
  const double angle = __dmul_rn(static_cast<double>(position), static_cast<double>(inv_freq));
  const int quadrant = __double2int_rn(__dmul_rn(angle, 6.36619772367581382433e-01));
  const auto r = static_cast<float>(__fma_rn(static_cast<double>(quadrant), -1.57079632679489661923, angle));
  const float z = __fmul_rn(r, r);
  float s = 2.75573137070700676789e-06f;
  s = __fmaf_rn(s, z, -1.98412698298579493134e-04f);
  s = __fmaf_rn(s, z, 8.33333333332248946124e-03f);
  s = __fmaf_rn(s, z, -1.66666666666666324348e-01f);
  const float sin_r = __fmaf_rn(__fmul_rn(r, z), s, r);
  float c = 2.48015872894767294178e-05f;
  c = __fmaf_rn(c, z, -1.38888888888741095749e-03f);
  c = __fmaf_rn(c, z, 4.16666666666666019037e-02f);
  c = __fmaf_rn(c, z, -0.5f);
  const float cos_r = __fmaf_rn(c, z, 1.0f);
  const float sin_q = quadrant & 1 ? cos_r : sin_r, cos_q = quadrant & 1 ? sin_r : cos_r;
  return {(quadrant + 1) & 2 ? -cos_q : cos_q, quadrant & 2 ? -sin_q : sin_q};
}

}  // namespace rtp_llm::cuda
