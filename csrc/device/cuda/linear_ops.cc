// linear and gated_mlp: from ops' arguments to a LinearProblem.
#include "device/cuda/cuda_ops.h"
#include "device/cuda/packed_linear.h"

namespace rtp_llm::cuda {

namespace {

void check_matrix(const char* op, const char* name, const Tensor& x, int64_t rows, int64_t columns) {
  check(x.ndim == 2 && x.shape[0] == rows && x.shape[1] == columns, op, ": ", name, " must be [", rows, ", ", columns,
        "]");
  check(x.stride[1] == 1, op, ": ", name, " must have contiguous rows");
}

LinearProblem problem_of(const char* op, const Tensor& x, const CudaLinear& weight) {
  const LinearSpec& spec = weight.spec();
  check_matrix(op, "x", x, x.shape[0], spec.in_features);
  check(x.dtype == DType::kBF16, op, ": x must be bfloat16, got ", name_of(x.dtype));
  return {.weights = weight.weights(),
          .out_features = static_cast<int>(spec.out_features()),
          .in_features = static_cast<int>(spec.in_features),
          .leaves = weight.leaves(),
          .bias = weight.bias(),
          .x = x.as<const __nv_bfloat16>(),
          .x_stride = x.stride[0],
          .rows = static_cast<int>(x.shape[0])};
}

LinearProblem problem_of(const char* op, const LinearArgs& args) {
  const CudaLinear& weight = as_cuda(args.weight, op);
  check(!weight.gated(), op, ": ", weight.spec().name, " is packed for gated_mlp");
  LinearProblem problem = problem_of(op, args.x, weight);
  check_matrix(op, "out", args.out, problem.rows, problem.out_features);
  problem.output = args.out.dtype == DType::kF32 ? LinearOutput::kF32 : LinearOutput::kBf16;
  check(args.out.dtype == DType::kF32 || args.out.dtype == DType::kBF16, op, ": out must be float32 or bfloat16");
  problem.out = args.out.data;
  problem.out_stride = args.out.stride[0];
  if (!args.residual.empty()) {
    check_matrix(op, "residual", args.residual, problem.rows, problem.out_features);
    check(args.residual.dtype == DType::kBF16, op, ": residual must be bfloat16, got ", name_of(args.residual.dtype));
    problem.residual = args.residual.as<const __nv_bfloat16>();
    problem.residual_stride = args.residual.stride[0];
  }
  return problem;
}

}  // namespace

void CudaOps::run(const LinearProblem& problem) {
  if (problem.rows == 0) return;
  run_linear(stream(), problem, device_.properties().major, device_.properties().num_sms);
}

void CudaOps::linear(const LinearArgs& args) { run(problem_of("linear", args)); }

void CudaOps::linear_rope_store(const LinearArgs& product, const QkvRopeStoreArgs& rope) {
  check(product.out.data == rope.qkv.data && product.out.stride[0] == rope.qkv.stride[0] &&
            product.out.dtype == DType::kBF16 && product.residual.empty(),
        "linear_rope_store: the product must be qkv");
  LinearProblem problem = problem_of("linear_rope_store", product);
  problem.rope = rope_store_of("linear_rope_store", rope);
  run_linear_rope(stream(), problem, device_.properties().major, device_.properties().num_sms);
}

void CudaOps::gated_mlp(const GatedMlpArgs& args) {
  const CudaLinear& gate_up = as_cuda(args.gate_up, "gated_mlp");
  check(gate_up.gated(), "gated_mlp: ", gate_up.spec().name, " is not packed for it");
  LinearProblem problem = problem_of("gated_mlp", args.x, gate_up);
  check_matrix("gated_mlp", "activated", args.activated, problem.rows, problem.out_features / 2);
  check(args.activated.dtype == DType::kBF16, "gated_mlp: activated must be bfloat16");
  problem.output = LinearOutput::kGated;
  problem.activation = args.activation;
  problem.out = args.activated.data;
  problem.out_stride = args.activated.stride[0];
  run(problem);
  linear({.x = args.activated, .weight = args.down, .out = args.out, .residual = args.residual});
}

}  // namespace rtp_llm::cuda
