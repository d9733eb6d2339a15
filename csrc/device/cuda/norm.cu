// rms_norm, layer_norm and add_rms_norm: a CTA a row (of a head, for q/k norm); sums in fp32 in one order, so that a
// row's bits depend on that row alone. The weight is loaded before the wait for the kernel that writes x. Of many rows
// a CTA takes several, the next one's x requested while one is summed.
#include <algorithm>

#include "device/cuda/cuda_ops.h"
#include "device/cuda/launch.h"
#include "device/cuda/norm.cuh"
#include "device/cuda/types.h"

namespace rtp_llm::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kManyRows = 2048;
constexpr int kMostPieces = 4;  // of 8 elements a thread: rows of up to 16,384 elements stay in registers

struct NormRow {
  void* x;            // [rows, heads, features]: strides in elements
  const void* delta;  // like x, contiguous over heads; null: none. x += delta first
  const float* weight;
  const float* bias;  // layer_norm only
  void* out;
  int64_t x_row, x_head, delta_row, out_row, out_head;
  unsigned rows;
  int features;
  float epsilon;
};

// One piece of 8 a thread and turn. kCentered: layer_norm. With one piece a CTA is small enough to find room beside a
// linear's. The grid has all rows, or with kMany (one piece) as many CTAs as find room.
template <class In, class Out, bool kCentered, int kPieces, bool kMany>
__global__ void __launch_bounds__(kThreads, kMany ? 3 : 1) norm_rows(const NormRow p) {
  let_successor_start();
  const int pieces = p.features / 8;
  float values[kPieces][8], weight[kPieces][8];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int piece = threadIdx.x + i * blockDim.x;
    if (piece < pieces) load_8(p.weight + piece * 8, weight[i]);
  }
  wait_for_predecessor();
  [[maybe_unused]] Raw8<In> next;  // kMany: of the row after this one
  const auto load_next = [&](unsigned row) {
    if (row < p.rows && threadIdx.x < pieces) next.load(static_cast<In*>(p.x) + row * p.x_row + threadIdx.x * 8);
  };
  if constexpr (kMany) load_next(blockIdx.x);
  unsigned later = 0;  // rows behind the first
  do {
    const unsigned row = kMany ? blockIdx.x + later : blockIdx.x;
    auto* x = static_cast<In*>(p.x) + row * p.x_row + blockIdx.y * p.x_head;
    float sum = 0.0f;
    if constexpr (kMany) {
      next.unpack(values[0]);
      load_next(row + gridDim.x);
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int piece = threadIdx.x + i * blockDim.x;
      if (piece >= pieces) continue;
      if constexpr (!kMany) load_8(x + piece * 8, values[i]);
      if (p.delta != nullptr) {
        float delta[8];
        load_8(static_cast<const In*>(p.delta) + row * p.delta_row + piece * 8, delta);
#pragma unroll
        for (int k = 0; k < 8; ++k) values[i][k] = to_f32(from_f32<In>(__fadd_rn(values[i][k], delta[k])));
        store_8(x + piece * 8, values[i]);
      }
#pragma unroll
      for (int k = 0; k < 8; ++k)
        sum = kCentered ? __fadd_rn(sum, values[i][k]) : __fmaf_rn(values[i][k], values[i][k], sum);
    }
    float mean = 0.0f;
    if constexpr (kCentered) {
      mean = __fdiv_rn(sum_over_cta(sum), static_cast<float>(p.features));
      sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        if (threadIdx.x + i * blockDim.x >= pieces) continue;
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          values[i][k] = __fsub_rn(values[i][k], mean);
          sum = __fmaf_rn(values[i][k], values[i][k], sum);
        }
      }
    }
    const float variance = __fdiv_rn(sum_over_cta(sum), static_cast<float>(p.features));
    const float scale = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(variance, p.epsilon)));
    auto* out = static_cast<Out*>(p.out) + row * p.out_row + blockIdx.y * p.out_head;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int piece = threadIdx.x + i * blockDim.x;
      if (piece >= pieces) continue;
      float bias[8] = {};
      if (kCentered && p.bias != nullptr) load_8(p.bias + piece * 8, bias);
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float normed = __fmul_rn(__fmul_rn(values[i][k], scale), weight[i][k]);
        values[i][k] = kCentered ? __fadd_rn(normed, bias[k]) : normed;
      }
      store_8(out + piece * 8, values[i]);
    }
  } while (kMany && blockIdx.x + (later += gridDim.x) < p.rows);
}

template <bool kCentered>
void norm(cudaStream_t stream, int num_sms, const char* op, const NormArgs& args, const Tensor& delta) {
  const bool heads = args.x.ndim == 3;
  const int64_t rows = args.x.shape[0], num_heads = heads ? args.x.shape[1] : 1;
  const int64_t features = args.x.shape[args.x.ndim - 1];
  check(args.x.ndim == 2 || heads, op, ": x must be [M, features] or [M, heads, features], has ", args.x.ndim,
        " dimensions");
  check(args.out.ndim == args.x.ndim && args.out.shape == args.x.shape, op, ": out must have the shape of x");
  check(args.weight.dtype == DType::kF32 && args.weight.numel() == features, op, ": weight must be float32 [", features,
        "]");
  check(features % 8 == 0 && features <= 8 * kMostPieces * kThreads, op, ": rows of ", features,
        " elements, a multiple of 8 up to ", 8 * kMostPieces * kThreads, " is supported");
  if (rows == 0) return;
  const NormRow row{.x = args.x.data,
                    .delta = delta.data,
                    .weight = args.weight.as<const float>(),
                    .bias = args.bias.as<const float>(),
                    .out = args.out.data,
                    .x_row = args.x.stride[0],
                    .x_head = heads ? args.x.stride[1] : 0,
                    .delta_row = delta.empty() ? 0 : delta.stride[0],
                    .out_row = args.out.stride[0],
                    .out_head = heads ? args.out.stride[1] : 0,
                    .rows = static_cast<unsigned>(rows),
                    .features = static_cast<int>(features),
                    .epsilon = args.epsilon};
  const int64_t threads = std::min<int64_t>(kThreads, (features / 8 + 31) / 32 * 32);
  const bool one_piece = features <= 8 * kThreads, many = one_piece && !heads && rows >= kManyRows;
  const int64_t ctas = many ? std::min<int64_t>(rows, num_sms * (1536 / threads)) : rows;
  const LaunchShape shape{.grid = dim3(ctas, num_heads), .block = dim3(threads)};
  with_types(op, args.x.dtype, args.out.dtype, [&](auto in, auto out) {
    launch(stream, shape, op,
           many        ? norm_rows<decltype(in), decltype(out), kCentered, 1, true>
           : one_piece ? norm_rows<decltype(in), decltype(out), kCentered, 1, false>
                       : norm_rows<decltype(in), decltype(out), kCentered, kMostPieces, false>,
           row);
  });
}

}  // namespace

void CudaOps::rms_norm(const NormArgs& args) {
  norm<false>(stream(), device_.properties().num_sms, "rms_norm", args, {});
}

void CudaOps::layer_norm(const NormArgs& args) {
  norm<true>(stream(), device_.properties().num_sms, "layer_norm", args, {});
}

void CudaOps::add_rms_norm(const AddRmsNormArgs& args) {
  check(!args.out.quantized(), "add_rms_norm: this backend writes no quantized output");
  check(args.delta.empty() || (args.delta.dtype == args.x.dtype && args.delta.shape == args.x.shape),
        "add_rms_norm: delta must have the type and shape of x");
  norm<false>(stream(), device_.properties().num_sms, "add_rms_norm",
              {.x = args.x, .weight = args.weight, .epsilon = args.epsilon, .out = args.out.data}, args.delta);
}

}  // namespace rtp_llm::cuda
