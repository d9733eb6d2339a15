// Which kernel multiplies what.
#include "device/cuda/linear.h"

namespace rtp_llm::cuda {
namespace {

// What the copy engine and 16-byte stores take.
bool aligned(const LinearProblem& problem) {
  const int multiple = problem.output == LinearOutput::kGated ? 16 : 8;
  return problem.out_features % multiple == 0 && problem.out_stride % 8 == 0 && problem.x_stride % 8 == 0 &&
         (problem.residual == nullptr || problem.residual_stride % 8 == 0) &&
         reinterpret_cast<uintptr_t>(problem.x) % 16 == 0 && reinterpret_cast<uintptr_t>(problem.out) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(problem.residual) % 16 == 0;
}

// A streaming CTA brings all of x for its few rows of W: with many tokens and few rows x is what counts.
bool streams(const LinearProblem& problem, int num_sms) {
  return problem.rows <= 16 || (problem.rows <= kMaxStreamRows && problem.tiles() > 2 * num_sms);
}

}  // namespace

void run_linear(cudaStream_t stream, const LinearProblem& problem, int capability_major, int num_sms) {
  if (problem.rows == 0) return;
  if (capability_major >= 9 && aligned(problem) && streams(problem, num_sms))
    return linear_stream(stream, problem, choose_stream(problem, num_sms));
  if (capability_major == 9 && aligned(problem)) return linear_wgmma(stream, problem, choose_wgmma(problem, num_sms));
  linear_plain(stream, problem);
}

}  // namespace rtp_llm::cuda
