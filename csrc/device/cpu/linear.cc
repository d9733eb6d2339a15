// linear: out = x W^T + bias + residual; and embedding, which gathers rows from the same panels.
#include <algorithm>
#include <cstring>

#include "device/cpu/cpu_ops.h"
#include "device/cpu/linear_product.h"
#include "device/cpu/rows.h"
#include "device/cpu/slot_rows.h"

namespace rtp_llm::cpu {
namespace {

// Adds bias, then residual, to the sums of rows [row, row + rows) of one panel and stores them.
template <class Format, class Out, class Residual>
void finish_rows(const Product<Format>& product, int64_t row, int64_t rows, int64_t panel, const float* sums) {
  const int64_t first = panel * kPanelWidth;
  const int64_t width = std::min<int64_t>(kPanelWidth, product.features() - first);
  const float* bias = product.weight->bias();
  for (int64_t i = 0; i < rows; ++i, sums += kPanelWidth)
    for_lanes(width, [&](int64_t column, int64_t n) {
      F32x16 sum = load(sums + column);
      if (bias != nullptr) sum = sum + load(bias + first + column);
      if (!product.residual.empty())
        sum = sum + load_run(row_of<Residual>(product.residual, row + i) + first + column, n);
      store_run(row_of<Out>(product.out, row + i) + first + column, sum, n);
    });
}

// One tile of rows: the weights stream by once, fetched ahead of use.
// Many tiles: arithmetic takes far longer than the panel's way from memory, once it lies in L2.
template <class Format, class Out, class Residual>
void compute_whole_panels(const Product<Format>& product, const Region& region) {
  constexpr int64_t kAheadWords = 8192 / 4;
  constexpr int kTileRows = Kernel<Format>::kTileRows;
  constexpr int64_t kFloats = kTileRows * kPanelWidth;
  const int lines = region.num_tiles(kTileRows) == 1 ? kPanelVectors : 0;
  const PanelLinear& weight = *product.weight;
  Kernel<Format> kernel;
  alignas(64) float sums[kTreeBuffers * kFloats];
  for (int64_t panel = region.first_panel; panel < region.end_panel; ++panel)
    for (int64_t row = region.first_row; row < region.end_row; row += kTileRows) {
      const int64_t rows = std::min<int64_t>(kTileRows, region.end_row - row);
      multiply_tree(weight.leaves(), rows * kPanelWidth, kFloats, sums, [&](int leaf, float* to) {
        const int64_t begin = first_step<Format>(leaf, weight.leaves(), weight.steps());
        const int64_t end = first_step<Format>(leaf + 1, weight.leaves(), weight.steps());
        const uint32_t* weights = weight.panel(panel) + begin * kPanelWidth;
        kernel.multiply(rows, product.x + row * product.x_stride + begin * Format::kInputsPerStep, product.x_stride,
                        weights, end - begin, {weights + kAheadWords, lines}, false, to);
      });
      finish_rows<Format, Out, Residual>(product, row, rows, panel, sums);
    }
}

template <class Format, class Out, class Residual>
void compute_blocked_panels(const Product<Format>& product, const Region& region) {
  alignas(64) float sums[kTreeBuffers * kBlockedSums<Format>];
  const PanelLinear& weight = *product.weight;
  Kernel<Format> kernel;
  for (int64_t panel = region.first_panel; panel < region.end_panel; ++panel) {
    multiply_tree(weight.leaves(), region.num_rows() * kPanelWidth, kBlockedSums<Format>, sums,
                  [&](int leaf, float* to) {
                    const int64_t begin = first_step<Format>(leaf, weight.leaves(), weight.steps());
                    const int64_t end = first_step<Format>(leaf + 1, weight.leaves(), weight.steps());
                    const uint32_t* next = weight.panel(panel) + end * kPanelWidth;  // the next leaf's, or panel's
                    const bool last = leaf + 1 == weight.leaves() && panel + 1 == region.end_panel;
                    multiply_blocked(kernel, product, region, panel, begin, end, last ? nullptr : next, to);
                  });
    finish_rows<Format, Out, Residual>(product, region.first_row, region.num_rows(), panel, sums);
  }
}

template <class Format, class Out, class Residual>
void compute(ThreadPool& pool, const Product<Format>& product) {
  const PanelLinear& weight = *product.weight;
  for_regions<Format>(pool, product.rows, weight.num_panels(), weight.panel_bytes(), [&](const Region& region) {
    const int64_t tiles = region.num_tiles(Kernel<Format>::kTileRows);
    tiles > 1 && tiles <= kMaxFewTiles ? compute_blocked_panels<Format, Out, Residual>(product, region)
                                       : compute_whole_panels<Format, Out, Residual>(product, region);
  });
}

template <class Format>
void compute_typed(ThreadPool& pool, const Product<Format>& product) {
  with_type("linear", product.out.dtype, product.out.data, [&](auto* out) {
    using Out = std::remove_pointer_t<decltype(out)>;
    const DType residual_dtype = product.residual.empty() ? DType::kF32 : product.residual.dtype;
    with_type("linear", residual_dtype, product.residual.data,
              [&](auto* residual) { compute<Format, Out, std::remove_pointer_t<decltype(residual)>>(pool, product); });
  });
}

// One row of x rounded to bf16 as the kernel multiplies it, and zeros up to padded_features.
template <class In>
void convert_row(const In* x, int64_t features, BFloat16* to) {
  for_lanes(features, [&](int64_t i, int64_t n) { store_run(to + i, load_run(x + i, n), n); });
  std::fill(to + features, to + padded_features(features), BFloat16{0});
}

template <class In>
void convert_row(const In* x, int64_t features, float* to, bool round) {
  for_lanes(features, [&](int64_t i, int64_t n) {
    const F32x16 value = load_run(x + i, n);
    store_run(to + i, round ? widen_bf16(round_bf16(value)) : value, n);
  });
  std::fill(to + features, to + padded_features(features), 0.0f);
}

}  // namespace

const void* CpuOps::linear_input(const Tensor& x, DType weight_dtype, int64_t& row_stride) {
  const int64_t rows = x.shape[0], features = x.shape[1];
  const int64_t padded = padded_features(features);
  const bool as_pairs =
      weight_dtype == DType::kBF16 && sizeof(Bf16Format::Input) == 4 && Bf16Format::kInputsPerStep == 1;
  if (!as_pairs) {
    if (weight_dtype == DType::kF32 && x.dtype == DType::kF32) {
      row_stride = x.stride[0];
      return x.data;
    }
    auto* to = static_cast<float*>(linear_input_.at_least(rows * padded * 4));
    with_type("linear", x.dtype, x.data, [&](auto* from) {
      for_rows(rows, features, [&](int64_t row, int) {
        convert_row(from + row * x.stride[0], features, to + row * padded, weight_dtype == DType::kBF16);
      });
    });
    row_stride = padded;
    return to;
  }
  const bool aligned = reinterpret_cast<uintptr_t>(x.data) % 4 == 0 && x.stride[0] % 2 == 0;
  if (x.dtype == DType::kBF16 && features == padded && aligned) {
    row_stride = x.stride[0] / 2;
    return x.data;
  }
  auto* to = static_cast<BFloat16*>(linear_input_.at_least(rows * padded * 2));
  with_type("linear", x.dtype, x.data, [&](auto* from) {
    for_rows(rows, features,
             [&](int64_t row, int) { convert_row(from + row * x.stride[0], features, to + row * padded); });
  });
  row_stride = padded / 2;
  return to;
}

void CpuOps::linear(const LinearArgs& args) {
  const PanelLinear& weight = panels_of("linear", args.weight);
  const LinearSpec& spec = weight.spec();
  const int64_t rows = args.x.shape[0], features = spec.out_features();
  check_features(spec.name.c_str(), "x", args.x, rows, spec.in_features);
  check_features(spec.name.c_str(), "out", args.out, rows, features);
  if (!args.residual.empty()) check_features(spec.name.c_str(), "residual", args.residual, rows, features);
  if (rows == 0) return;
  int64_t stride = 0;
  const void* x = linear_input(args.x, spec.dtype, stride);
  const auto product = [&]<class Format>() {
    compute_typed<Format>(pool_, {.x = static_cast<const typename Format::Input*>(x),
                                  .x_stride = stride,
                                  .rows = rows,
                                  .weight = &weight,
                                  .out = args.out,
                                  .residual = args.residual});
  };
  if (spec.dtype == DType::kF32)
    product.template operator()<F32Format>();
  else
    product.template operator()<Bf16Format>();
}

namespace {

// Row `token` of a packed table: element k lies a panel's width behind element k - 1.
template <class Out>
void gather_row(const PanelLinear& table, int64_t token, Out* out) {
  const int64_t features = table.spec().in_features;
  const uint32_t* at = table.panel(token / kPanelWidth) + token % kPanelWidth;
  const bool pairs = table.spec().dtype == DType::kBF16;
  const auto put = [&](int64_t k, uint32_t bits) {
    const float value = __builtin_bit_cast(float, bits);
    if constexpr (std::is_same_v<Out, float>)
      out[k] = value;
    else
      out[k] = to_bf16(value);
  };
  for (int64_t step = 0; step < (pairs ? (features + 1) / 2 : features); ++step) {
    const uint32_t word = at[step * kPanelWidth];
    if (!pairs) {
      put(step, word);
      continue;
    }
    put(2 * step, word << 16);
    if (2 * step + 1 < features) put(2 * step + 1, word & 0xffff0000u);
  }
}

}  // namespace

void CpuOps::embedding(const EmbeddingArgs& args) {
  const PanelLinear& table = panels_of("embedding", args.table);
  const LinearSpec& spec = table.spec();
  check(spec.gather, "embedding: weight '", spec.name, "' was not packed for gathering");
  const int64_t rows = args.tokens.numel();
  check(args.tokens.dtype == DType::kI32, "embedding: tokens must be int32, got ", name_of(args.tokens.dtype));
  check_features("embedding", "out", args.out, rows, spec.in_features);
  std::vector<int32_t>& tokens = tokens_;
  tokens.assign(args.tokens.as<const int32_t>(), args.tokens.as<const int32_t>() + rows);
  const Slots& slots = slots_of("embedding", args.step);
  for (const Segment& segment : args.step->segments)
    for (int64_t row = segment.first_row; row < segment.first_row + int64_t{segment.rows}; ++row) {
      check(row >= 0 && row < rows, "embedding: row ", row, " out of range, there are ", rows);
      if (tokens[static_cast<size_t>(row)] != kTokenFromSlot) continue;
      check(segment.slot >= 0 && segment.slot < slots.last_token.shape[0], "embedding: slot ", segment.slot,
            " out of range");
      tokens[static_cast<size_t>(row)] = slots.last_token.as<const int32_t>()[segment.slot];
    }
  for (int64_t row = 0; row < rows; ++row)
    check(tokens[static_cast<size_t>(row)] >= 0 && tokens[static_cast<size_t>(row)] < spec.out_features(),
          "embedding: token id ", tokens[static_cast<size_t>(row)], " of row ", row,
          " out of range, the vocabulary has ", spec.out_features());
  with_type("embedding", args.out.dtype, args.out.data, [&](auto* out) {
    for_rows(rows, spec.in_features * 8, [&](int64_t row, int) {
      gather_row(table, tokens[static_cast<size_t>(row)], out + row * args.out.stride[0]);
    });
  });
}

}  // namespace rtp_llm::cpu
