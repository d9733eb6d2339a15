// cuBLASLt as the yardstick of the linears: the algorithms that keep the bits, each timed, the best one kept.
//
// No split-K (reduction scheme none) and not algorithm id 16: measured to sum in another order.
#pragma once

#include <cublasLt.h>
#include <cuda_bf16.h>

#include <array>

#include "device/cuda/cuda_check.h"

namespace rtp_llm::cuda {

inline void lt_check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) throw Error(concat("cuBLASLt: ", what, ": status ", static_cast<int>(status)));
}

class LtLinear {
 public:
  // out [m, n] = x [m, k] w [n, k]^T (+ residual), bf16; out f32 if `f32`.
  LtLinear(int m, int n, int k, bool f32) {
    lt_check(cublasLtCreate(&handle_), "create");
    lt_check(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "operation");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    lt_check(cublasLtMatmulDescSetAttribute(operation_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed),
             "transpose");
    lt_check(cublasLtMatrixLayoutCreate(&w_, CUDA_R_16BF, k, n, k), "w");
    lt_check(cublasLtMatrixLayoutCreate(&x_, CUDA_R_16BF, k, m, k), "x");
    lt_check(cublasLtMatrixLayoutCreate(&out_, f32 ? CUDA_R_32F : CUDA_R_16BF, n, m, n), "out");
    cuda_check(cudaMalloc(&workspace_, kWorkspaceBytes), "cuBLASLt workspace");
    find();
  }
  LtLinear(const LtLinear&) = delete;
  ~LtLinear() {
    cudaFree(workspace_);
    cublasLtMatrixLayoutDestroy(out_);
    cublasLtMatrixLayoutDestroy(x_);
    cublasLtMatrixLayoutDestroy(w_);
    cublasLtMatmulDescDestroy(operation_);
    cublasLtDestroy(handle_);
  }

  int num_algorithms() const { return num_algorithms_; }
  void run(cudaStream_t stream, int algorithm, const void* x, const void* w, const void* residual, void* out) const {
    const float one = 1.0f, beta = residual != nullptr ? 1.0f : 0.0f;
    lt_check(cublasLtMatmul(handle_, operation_, &one, w, w_, x, x_, &beta, residual != nullptr ? residual : out, out_,
                            out, out_, &algorithms_[algorithm], workspace_, kWorkspaceBytes, stream),
             "matmul");
  }

 private:
  static constexpr int kMaxAlgorithms = 12;
  static constexpr size_t kWorkspaceBytes = 64 << 20;

  void find() {
    cublasLtMatmulPreference_t preference;
    lt_check(cublasLtMatmulPreferenceCreate(&preference), "preference");
    const uint32_t none = 0;
    lt_check(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                  &kWorkspaceBytes, sizeof kWorkspaceBytes),
             "workspace");
    lt_check(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &none,
                                                  sizeof none),
             "no split-K");
    cublasLtMatmulHeuristicResult_t found[kMaxAlgorithms];
    int count = 0;
    lt_check(cublasLtMatmulAlgoGetHeuristic(handle_, operation_, w_, x_, out_, out_, preference, kMaxAlgorithms, found,
                                            &count),
             "heuristic");
    for (int i = 0; i < count; ++i) {
      int id = 0, split = 0;
      size_t written = 0;
      cublasLtMatmulAlgoConfigGetAttribute(&found[i].algo, CUBLASLT_ALGO_CONFIG_ID, &id, sizeof id, &written);
      cublasLtMatmulAlgoConfigGetAttribute(&found[i].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, sizeof split,
                                           &written);
      if (id != 16 && split <= 1) algorithms_[num_algorithms_++] = found[i].algo;
    }
    cublasLtMatmulPreferenceDestroy(preference);
  }

  cublasLtHandle_t handle_{};
  cublasLtMatmulDesc_t operation_{};
  cublasLtMatrixLayout_t w_{}, x_{}, out_{};
  void* workspace_ = nullptr;
  std::array<cublasLtMatmulAlgo_t, kMaxAlgorithms> algorithms_{};
  int num_algorithms_ = 0;
};

}  // namespace rtp_llm::cuda
