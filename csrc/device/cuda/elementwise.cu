// The row-wise ops that only move or combine: embedding, gather_rows, add, gated_activation. A row's elements are split
// over the threads of its CTA; no sum crosses threads.
#include <algorithm>

#include "device/cuda/cuda_ops.h"
#include "device/cuda/launch.h"
#include "device/cuda/math.cuh"
#include "device/cuda/norm.cuh"
#include "device/cuda/packed_linear.h"
#include "device/cuda/types.h"

namespace rtp_llm::cuda {
namespace {

constexpr int kThreads = 256;

LaunchShape row_shape(int64_t rows, int64_t features) {
  const int64_t threads = std::clamp<int64_t>((features / 8 + 31) / 32 * 32, 32, kThreads);
  return {.grid = dim3(rows), .block = dim3(threads)};
}

void check_pieces(const char* op, const char* name, int64_t features) {
  check(features % 8 == 0, op, ": ", name, " has rows of ", features, " elements, a multiple of 8 is supported");
}

// ---- embedding

struct EmbeddingKernel {
  const int32_t* tokens;
  const int32_t* row_slot;
  const int32_t* last_token;
  const uint8_t* table;  // packed as linear.h says: a row's pieces of 8 elements are apart
  int64_t groups;        // of 8 rows
  int64_t vocab;
  int64_t hidden;
};

template <class Out>
__global__ void embed_rows(const EmbeddingKernel p, Out* out, int64_t out_row) {
  let_successor_start();
  wait_for_predecessor();
  const int64_t row = blockIdx.x;
  int64_t token = p.tokens[row];
  if (token == kTokenFromSlot) token = p.last_token[p.row_slot[row]];
  // The host has checked its tokens; a slot's comes from `sample`. Whatever else is there reads row 0, no stray memory.
  if (token < 0 || token >= p.vocab) token = 0;
  for (int64_t i = threadIdx.x; i < p.hidden / 8; i += blockDim.x) {
    float values[8];
    load_8(reinterpret_cast<const bf16*>(p.table + (i / 8 * p.groups + token / 8) * kGroupBytes + i % 8 * 128 +
                                         token % 8 * 16),
           values);
    store_8(out + row * out_row + i * 8, values);
  }
}

// ---- gather_rows, add, gated_activation

template <class T>
__global__ void gather(const T* x, int64_t x_row, const int32_t* rows, T* out, int64_t out_row, int64_t pieces) {
  let_successor_start();
  wait_for_predecessor();
  const T* from = x + rows[blockIdx.x] * x_row;
  T* to = out + blockIdx.x * out_row;
  for (int64_t i = threadIdx.x; i < pieces; i += blockDim.x) {
    float values[8];
    load_8(from + i * 8, values);
    store_8(to + i * 8, values);
  }
}

template <class T>
__global__ void add_rows(T* x, int64_t x_row, const T* delta, int64_t delta_row, int64_t pieces) {
  let_successor_start();
  wait_for_predecessor();
  for (int64_t i = threadIdx.x; i < pieces; i += blockDim.x) {
    float sum[8], more[8];
    load_8(x + blockIdx.x * x_row + i * 8, sum);
    load_8(delta + blockIdx.x * delta_row + i * 8, more);
#pragma unroll
    for (int k = 0; k < 8; ++k) sum[k] = __fadd_rn(sum[k], more[k]);
    store_8(x + blockIdx.x * x_row + i * 8, sum);
  }
}

template <Activation kActivation, class In, class Out>
__global__ void activate_rows(const In* gate_up, int64_t row_stride, Out* out, int64_t out_row, int64_t features) {
  let_successor_start();
  wait_for_predecessor();
  const In* gate = gate_up + blockIdx.x * row_stride;
  const int64_t piece = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (piece * 8 >= features) return;
  float a[8], b[8];
  load_8(gate + piece * 8, a);
  load_8(gate + features + piece * 8, b);
#pragma unroll
  for (int k = 0; k < 8; ++k) a[k] = __fmul_rn(activate<kActivation>(a[k]), b[k]);
  store_8(out + blockIdx.x * out_row + piece * 8, a);
}

}  // namespace

void CudaOps::embedding(const EmbeddingArgs& args) {
  const CudaLinear& table = as_cuda(args.table, "embedding");
  const int64_t rows = args.tokens.shape[0], hidden = table.spec().in_features;
  check(args.out.ndim == 2 && args.out.shape[0] == rows && args.out.shape[1] == hidden, "embedding: out must be [",
        rows, ", ", hidden, "]");
  check_pieces("embedding", "table", hidden);
  const EmbeddingKernel p{.tokens = args.tokens.as<const int32_t>(),
                          .row_slot = args.step->row_slot.as<const int32_t>(),
                          .last_token = args.step->slots->last_token.as<const int32_t>(),
                          .table = static_cast<const uint8_t*>(table.weights()),
                          .groups = (table.spec().out_features() + kTileRows - 1) / kTileRows * 2,
                          .vocab = table.spec().out_features(),
                          .hidden = hidden};
  with_type("embedding", args.out.dtype, [&](auto type) {
    using Out = decltype(type);
    LaunchShape shape = row_shape(rows, hidden);
    shape.dependent = false;  // the first kernel of a step (launch.h)
    launch(stream(), shape, "embedding", embed_rows<Out>, p, args.out.as<Out>(), args.out.stride[0]);
  });
}

void CudaOps::gather_rows(const GatherRowsArgs& args) {
  const int64_t rows = args.rows.numel(), features = args.x.shape[1];
  check(args.out.dtype == args.x.dtype && args.out.shape[0] == rows && args.out.shape[1] == features,
        "gather_rows: out must be [", rows, ", ", features, "] of x's type");
  check_pieces("gather_rows", "x", features);
  with_type("gather_rows", args.x.dtype, [&](auto type) {
    using T = decltype(type);
    launch(stream(), row_shape(rows, features), "gather_rows", gather<T>, args.x.as<const T>(), args.x.stride[0],
           args.rows.as<const int32_t>(), args.out.as<T>(), args.out.stride[0], features / 8);
  });
}

void CudaOps::add(const Tensor& x, const Tensor& delta) {
  check(x.dtype == delta.dtype && x.shape == delta.shape, "add: delta must have the type and shape of x");
  check_pieces("add", "x", x.shape[1]);
  with_type("add", x.dtype, [&](auto type) {
    using T = decltype(type);
    launch(stream(), row_shape(x.shape[0], x.shape[1]), "add", add_rows<T>, x.as<T>(), x.stride[0], delta.as<const T>(),
           delta.stride[0], x.shape[1] / 8);
  });
}

void CudaOps::gated_activation(const GatedActivationArgs& args) {
  const int64_t rows = args.out.shape[0], features = args.out.shape[1];
  check(args.gate_up.shape[0] == rows && args.gate_up.shape[1] == 2 * features, "gated_activation: gate_up must be [",
        rows, ", ", 2 * features, "]");
  check_pieces("gated_activation", "out", features);
  const LaunchShape shape{.grid = dim3(rows, (features / 8 + kThreads - 1) / kThreads), .block = dim3(kThreads)};
  with_types("gated_activation", args.gate_up.dtype, args.out.dtype, [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    const auto run = [&](auto kernel) {
      launch(stream(), shape, "gated_activation", kernel, args.gate_up.as<const In>(), args.gate_up.stride[0],
             args.out.as<Out>(), args.out.stride[0], features);
    };
    switch (args.activation) {
      case Activation::kSilu: return run(activate_rows<Activation::kSilu, In, Out>);
      case Activation::kGelu: return run(activate_rows<Activation::kGelu, In, Out>);
      case Activation::kGeluTanh: return run(activate_rows<Activation::kGeluTanh, In, Out>);
    }
  });
}

}  // namespace rtp_llm::cuda
