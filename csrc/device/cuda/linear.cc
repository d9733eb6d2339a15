// Which kernel multiplies what.
#include "device/cuda/linear.h"

namespace rtp_llm::cuda {
namespace {

// What the copy engine, 16-byte stores and the sums of leaves take.
bool suits(const LinearProblem& problem) {
  const int multiple = problem.output == LinearOutput::kGated ? 16 : 8;
  return (problem.leaves == 1 || problem.output == LinearOutput::kBf16) && problem.leaves <= problem.blocks() &&
         problem.out_features % multiple == 0 && problem.out_stride % 8 == 0 && problem.x_stride % 8 == 0 &&
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
  if (capability_major >= 9 && suits(problem) && streams(problem, num_sms))
    return linear_stream(stream, problem, choose_stream(problem, num_sms));
  if (capability_major == 9 && suits(problem)) return linear_wgmma(stream, problem, choose_wgmma(problem, num_sms));
  linear_plain(stream, problem);
}

void run_linear_rope(cudaStream_t stream, LinearProblem problem, int capability_major, int num_sms) {
  if (problem.rows == 0) return;
  problem.output = LinearOutput::kRoped;
  if (capability_major == 9 && suits(problem) && !streams(problem, num_sms) && wgmma_ropes(problem, num_sms))
    return linear_wgmma(stream, problem, choose_wgmma(problem, num_sms));
  problem.output = LinearOutput::kBf16;
  run_linear(stream, problem, capability_major, num_sms);
  qkv_rope_store(stream, problem.rope);
}

}  // namespace rtp_llm::cuda
