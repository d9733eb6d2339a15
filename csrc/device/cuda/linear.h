// linear: y = x W^T (+ bias) (+ residual), and act(gate) * up of an interleaved gate_up, on packed weights.
//
// Numerics: products of bf16, summed in fp32 over K in steps of 16 by the tensor core, one accumulator a leaf. K is cut
// into `leaves` equal runs of blocks whose sums are added pairwise as a binary tree (1: no cut). Then, in fp32: + bias,
// + residual, one rounding. Gate and up are rounded to bf16 before the activation, as `linear` and `gated_activation`
// one after the other would. Every kernel below keeps to that, so a row's bits don't depend on the kernel, on the
// other rows or on their number.
//
// Weights, one layout for all kernels: bf16 [K/64][N/8][8][8 rows][8]: blocks of 64 features; in each, groups of 8
// rows; in each, 8 pieces of 8 x 8 elements, 128 contiguous bytes. ldmatrix reads a piece without bank conflicts, wgmma
// takes groups as they lie (no swizzle), and the rows of any CTA are one contiguous run of a block. K is padded with
// zeros to 64, N to 16. With `gated`, rows alternate: 8 of gate, their 8 of up.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "device/cuda/qkv_rope_store.h"
#include "device/ops.h"

namespace rtp_llm::cuda {

inline constexpr int kBlockFeatures = 64;  // of K
inline constexpr int kTileRows = 16;       // of N: what a warp multiplies
inline constexpr int kTileBytes = kTileRows * kBlockFeatures * 2;
inline constexpr int kGroupBytes = kTileBytes / 2;  // 8 rows of a block
inline constexpr int kMaxLeaves = 4;

// kRoped: the product is q, k and v, and what qkv_rope_store does to them follows it.
enum class LinearOutput : uint8_t { kBf16, kF32, kGated, kRoped };

struct LinearProblem {
  const void* weights = nullptr;
  int out_features = 0;         // N: rows of W; with kGated twice the columns of out
  int in_features = 0;          // K
  int leaves = 1;               // 1, 2 or 4
  const float* bias = nullptr;  // [N] in the order of the packed rows, or null
  const __nv_bfloat16* x = nullptr;
  int64_t x_stride = 0;
  int rows = 0;  // M
  LinearOutput output = LinearOutput::kBf16;
  Activation activation = Activation::kSilu;  // kGated
  void* out = nullptr;                        // [M, N] bf16 or f32; kGated: [M, N / 2] bf16
  int64_t out_stride = 0;
  const __nv_bfloat16* residual = nullptr;  // [M, N] or null; may be out
  int64_t residual_stride = 0;
  RopeStoreProblem rope{};  // kRoped: of the same rows, with a table; q goes to rope.qkv, `out` isn't written

  int tiles() const { return (out_features + kTileRows - 1) / kTileRows; }
  int blocks() const { return (in_features + kBlockFeatures - 1) / kBlockFeatures; }
};

// First block of a leaf; leaf == leaves: the end. All kernels cut K alike.
__host__ __device__ inline int first_block(int leaf, int leaves, int blocks) { return leaf * blocks / leaves; }

// Launches the kernel that suits the problem and the GPU. Shapes alone decide, and the bits are the same.
void run_linear(cudaStream_t stream, const LinearProblem& problem, int capability_major, int num_sms);
// The product of q, k, v into problem.rope.qkv and qkv_rope_store, in one kernel where that is faster than two. Of k
// and v what qkv holds afterwards is unspecified.
void run_linear_rope(cudaStream_t stream, LinearProblem problem, int capability_major, int num_sms);

// ---- Streaming, up to 32 rows: weights pass once through a ring in shared memory. sm_90 and later. -----------------

struct StreamShape {
  int tiles = 1;            // of 16 rows a CTA
  int leaves_in_cta = 1;    // times `cluster` = the problem's leaves
  int cluster = 1;          // CTAs that share tiles, each with its leaves, and exchange sums
  int blocks_in_stage = 1;  // of each leaf: 1 or 4
  int stages = 4;
  int in_flight = 4;  // stages requested and not landed; < stages
  int grid = 1;
};
inline constexpr int kMaxStreamRows = 32;

StreamShape choose_stream(const LinearProblem& problem, int num_sms);
// The shape whose leaves lie in clusters of `cluster` CTAs (1 or a divisor of the leaves), with stages of
// `blocks_in_stage` blocks of each leaf, or of 1 where 4 are too much for the ring or for registers.
StreamShape stream_with(const LinearProblem& problem, int num_sms, int cluster, int blocks_in_stage);
void linear_stream(cudaStream_t stream, const LinearProblem& problem, const StreamShape& shape);

// ---- Large M: wgmma, tokens as A and weights as B. sm_90a. ----------------------------------------------------------

struct WgmmaShape {
  int tokens = 128;     // a CTA's: 64 or 128
  int tile_rows = 128;  // of W a CTA: 64, 96, 128, 192, 224 or 256
  int share = 1;        // 2: CTAs with neighbouring token tiles share the weights that each brings half of
  int split = 1;        // 2: CTAs with one tile, each with half of the leaves
  int grid = 1;
};

// Every shape that has a kernel; linear_wgmma throws for others.
std::vector<WgmmaShape> wgmma_shapes(LinearOutput output, int leaves);
WgmmaShape choose_wgmma(const LinearProblem& problem, int num_sms);
// Whether kRoped has a kernel for the problem's heads, and takes less time than kBf16 and qkv_rope_store.
bool wgmma_ropes(const LinearProblem& problem, int num_sms);
// `shape` with the grid that it needs.
WgmmaShape wgmma_with(const LinearProblem& problem, int num_sms, WgmmaShape shape);
void linear_wgmma(cudaStream_t stream, const LinearProblem& problem, const WgmmaShape& shape);

// ---- Any M, any GPU from sm_80 on: plain loads. ---------------------------------------------------------------------

void linear_plain(cudaStream_t stream, const LinearProblem& problem);

// ---- Packing --------------------------------------------------------------------------------------------------------

struct PackRows {
  const void* rows = nullptr;  // [count, in_features] on the device, contiguous
  DType dtype = DType::kBF16;  // f32 or bf16
  int count = 0;
  int in_features = 0;
  int out_features = 0;
  int first_row = 0;    // of W, where the first goes; with `interleave` a row of gate or of up
  int interleave = -1;  // -1: rows stay in order; 0: these are gate's, 1: up's
  void* weights = nullptr;
};
int64_t packed_bytes(int64_t out_features, int64_t in_features);
// Packed place of row `row` of gate (part 0) or up (part 1), or of any row of a plain weight (part -1).
__host__ __device__ inline int packed_row(int row, int part) {
  return part < 0 ? row : row / 8 * 16 + part * 8 + row % 8;
}
void pack_rows(cudaStream_t stream, const PackRows& rows);

}  // namespace rtp_llm::cuda
