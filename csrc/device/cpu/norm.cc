// rms_norm, layer_norm: row by row (per head for q/k norm), sums in 16 lanes and one tree.
#include <algorithm>

#include "device/cpu/cpu_ops.h"
#include "device/cpu/rows.h"
#include "device/cpu/vec.h"

namespace rtp_llm::cpu {
namespace {

// Vectors of a [M, features] or [M, heads, features] tensor.
struct Vectors {
  explicit Vectors(const Tensor& x)
      : rows(x.shape[0]),
        heads(x.ndim == 3 ? x.shape[1] : 1),
        features(x.shape[x.ndim - 1]),
        row_stride(x.stride[0]),
        head_stride(x.ndim == 3 ? x.stride[1] : 0) {}
  int64_t offset(int64_t row, int64_t head) const { return row * row_stride + head * head_stride; }
  int64_t rows, heads, features, row_stride, head_stride;
};

void check_norm(const char* op, const NormArgs& args) {
  check(args.x.ndim == 2 || args.x.ndim == 3, op, ": x must have 2 or 3 dimensions, got ", args.x.ndim);
  const int64_t features = args.x.shape[args.x.ndim - 1];
  check(args.x.stride[args.x.ndim - 1] == 1 || features <= 1, op, ": features must be contiguous");
  check(args.out.ndim == args.x.ndim && args.out.shape == args.x.shape, op, ": out must have x's shape");
  check(args.weight.dtype == DType::kF32 && args.weight.numel() == features, op, ": weight must be float32 [", features,
        "], got [", args.weight.numel(), "]");
  check(args.bias.empty() || (args.bias.dtype == DType::kF32 && args.bias.numel() == features), op,
        ": bias must be float32 [", features, "]");
}

template <class In, class Out>
void rms_norm_vector(const In* x, const float* weight, float epsilon, int64_t features, Out* out) {
  F32x16 squares = zero();
  for_lanes(features, [&](int64_t i, int64_t n) {
    const F32x16 value = load_run(x + i, n);
    squares = fma(value, value, squares);
  });
  const float mean = reduce_add(squares) / static_cast<float>(features);
  const F32x16 scale = splat(1.0f / __builtin_sqrtf(mean + epsilon));
  for_lanes(features,
            [&](int64_t i, int64_t n) { store_run(out + i, load_run(x + i, n) * scale * load_run(weight + i, n), n); });
}

template <class In, class Out>
void layer_norm_vector(const In* x, const float* weight, const float* bias, float epsilon, int64_t features, Out* out) {
  F32x16 sum = zero();
  for_lanes(features, [&](int64_t i, int64_t n) { sum = sum + load_run(x + i, n); });
  const float mean = reduce_add(sum) / static_cast<float>(features);
  F32x16 squares = zero();
  for_lanes(features, [&](int64_t i, int64_t n) {
    const F32x16 apart = load_run(x + i, n) - splat(mean);
    const I32x16 inside = less(lane_indices(), splat_i32(static_cast<int32_t>(n)));
    squares = select(inside, fma(apart, apart, squares), squares);
  });
  const float variance = reduce_add(squares) / static_cast<float>(features);
  const F32x16 scale = splat(1.0f / __builtin_sqrtf(variance + epsilon));
  for_lanes(features, [&](int64_t i, int64_t n) {
    F32x16 y = (load_run(x + i, n) - splat(mean)) * scale * load_run(weight + i, n);
    if (bias != nullptr) y = y + load_run(bias + i, n);
    store_run(out + i, y, n);
  });
}

}  // namespace

void CpuOps::rms_norm(const NormArgs& args) {
  check_norm("rms_norm", args);
  check(args.bias.empty(), "rms_norm: takes no bias");
  const Vectors in(args.x), to(args.out);
  const auto* weight = args.weight.as<const float>();
  with_type("rms_norm", args.x.dtype, args.x.data, [&](auto* x) {
    with_type("rms_norm", args.out.dtype, args.out.data, [&](auto* out) {
      for_rows(in.rows, in.heads * in.features, [&](int64_t row, int) {
        for (int64_t head = 0; head < in.heads; ++head)
          rms_norm_vector(x + in.offset(row, head), weight, args.epsilon, in.features, out + to.offset(row, head));
      });
    });
  });
}

void CpuOps::layer_norm(const NormArgs& args) {
  check_norm("layer_norm", args);
  const Vectors in(args.x), to(args.out);
  const auto* weight = args.weight.as<const float>();
  const auto* bias = args.bias.as<const float>();
  with_type("layer_norm", args.x.dtype, args.x.data, [&](auto* x) {
    with_type("layer_norm", args.out.dtype, args.out.data, [&](auto* out) {
      for_rows(in.rows, in.heads * in.features, [&](int64_t row, int) {
        for (int64_t head = 0; head < in.heads; ++head)
          layer_norm_vector(x + in.offset(row, head), weight, bias, args.epsilon, in.features,
                            out + to.offset(row, head));
      });
    });
  });
}

}  // namespace rtp_llm::cpu
