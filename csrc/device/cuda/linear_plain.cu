// linear_plain: y = x W^T on any GPU from sm_80 on, for any number of rows: a warp multiplies a tile of 16 rows of W
// and 32 tokens, operands by plain loads. Right everywhere, fast nowhere: what the other kernels are checked against.
#include "device/cuda/launch.h"
#include "device/cuda/linear.h"
#include "device/cuda/linear_epilogue.cuh"

namespace rtp_llm::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kTokenTiles = 4;  // of 8

struct PlainParameters {
  const uint8_t* weights;
  const bf16* x;
  int64_t x_stride;
  int in_features, blocks, total_tiles, leaves;
  Epilogue epilogue;
};

// Features [k, k + 2) of x's row, zero outside.
__device__ __forceinline__ uint32_t load_pair(const PlainParameters& p, int token, int k) {
  if (token >= p.epilogue.rows || k >= p.in_features) return 0;
  const bf16* at = p.x + token * p.x_stride + k;
  const uint32_t low = __bfloat16_as_ushort(at[0]);
  return k + 1 < p.in_features ? low | static_cast<uint32_t>(__bfloat16_as_ushort(at[1])) << 16 : low;
}

__device__ __forceinline__ void multiply_blocks(const PlainParameters& p, int tile, int first_token, int begin, int end,
                                                float (&sum)[kTokenTiles][4]) {
  const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) sum[j][e] = 0.0f;
  for (int block = begin; block < end; ++block) {
    const uint8_t* weights = p.weights + (static_cast<int64_t>(block) * p.total_tiles + tile) * kTileBytes + lane * 4;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)  // rows 0-7, 8-15 of the first 8 features, then of the next 8
        a[i] = *reinterpret_cast<const uint32_t*>(weights + i % 2 * kGroupBytes + (step * 2 + i / 2) * 128);
      const int k = block * kBlockFeatures + step * 16 + pair * 2;
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
        const int token = first_token + j * 8 + group;
        multiply_add(sum[j], a[0], a[1], a[2], a[3], load_pair(p, token, k), load_pair(p, token, k + 8));
      }
    }
  }
}

template <LinearOutput kOutput>
__device__ __forceinline__ void store_value(const Epilogue& p, int tile, int first_token, int e,
                                            const float (&sum)[4]) {
  const int lane = threadIdx.x % 32, row = lane / 4 + e / 2 * 8;
  const int token = first_token + lane % 4 * 2 + e % 2, column = tile * kTileRows + row;
  if (token >= p.rows || column >= p.out_features) return;
  if constexpr (kOutput == LinearOutput::kGated) {
    if (e >= 2) return;
    const float gate = finished(sum[e], p.bias, column, 0, false);
    const float up = finished(sum[e + 2], p.bias, column + 8, 0, false);
    static_cast<bf16*>(p.out)[token * p.out_stride + tile * 8 + row] =
        low_half(gated_pair(gate, gate, up, up, p.activation));
  } else {
    const bool has_residual = p.residual != nullptr;
    const float residual = has_residual ? __bfloat162float(p.residual[token * p.residual_stride + column]) : 0.0f;
    const float value = finished(sum[e], p.bias, column, residual, has_residual);
    if constexpr (kOutput == LinearOutput::kF32)
      static_cast<float*>(p.out)[token * p.out_stride + column] = value;
    else
      static_cast<bf16*>(p.out)[token * p.out_stride + column] = __float2bfloat16_rn(value);
  }
}

template <LinearOutput kOutput>
__global__ void __launch_bounds__(kWarps * 32) plain_kernel(const PlainParameters p) {
  let_successor_start();
  wait_for_predecessor();
  const int tile = blockIdx.x * kWarps + threadIdx.x / 32, first_token = blockIdx.y * kTokenTiles * 8;
  if (tile >= p.total_tiles) return;
  // Subtrees that wait for their right sibling: at most one of 1 leaf and one of 2.
  float sum[kTokenTiles][4], waiting[2][kTokenTiles][4];
  for (int leaf = 0; leaf < p.leaves; ++leaf) {
    multiply_blocks(p, tile, first_token, first_block(leaf, p.leaves, p.blocks),
                    first_block(leaf + 1, p.leaves, p.blocks), sum);
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (leaf & 1) sum[j][e] = __fadd_rn(waiting[0][j][e], sum[j][e]);
        if (leaf == 3) sum[j][e] = __fadd_rn(waiting[1][j][e], sum[j][e]);
        waiting[leaf & 1][j][e] = sum[j][e];
      }
  }
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) store_value<kOutput>(p.epilogue, tile, first_token + j * 8, e, sum[j]);
}

}  // namespace

void linear_plain(cudaStream_t stream, const LinearProblem& problem) {
  const PlainParameters p{.weights = static_cast<const uint8_t*>(problem.weights),
                          .x = problem.x,
                          .x_stride = problem.x_stride,
                          .in_features = problem.in_features,
                          .blocks = problem.blocks(),
                          .total_tiles = problem.tiles(),
                          .leaves = problem.leaves,
                          .epilogue = epilogue_of(problem)};
  const LaunchShape shape{.grid = dim3((problem.tiles() + kWarps - 1) / kWarps, (problem.rows + 31) / 32),
                          .block = dim3(kWarps * 32)};
  switch (problem.output) {
    case LinearOutput::kBf16: return launch(stream, shape, "linear_plain", plain_kernel<LinearOutput::kBf16>, p);
    case LinearOutput::kF32: return launch(stream, shape, "linear_plain", plain_kernel<LinearOutput::kF32>, p);
    case LinearOutput::kGated: return launch(stream, shape, "linear_plain", plain_kernel<LinearOutput::kGated>, p);
    case LinearOutput::kRoped: break;
  }
  check(false, "linear_plain: norm and rotation follow no product here");
}

}  // namespace rtp_llm::cuda
