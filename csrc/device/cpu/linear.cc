// linear: out = x W^T + bias + residual; and embedding, which gathers rows from the same panels.
#include <algorithm>
#include <cstring>

#include "device/cpu/cpu_ops.h"
#include "device/cpu/linear_kernel.h"
#include "device/cpu/rows.h"
#include "device/cpu/slot_rows.h"

namespace rtp_llm::cpu {
namespace {

constexpr int64_t kChunkBytes = 256 << 10;  // weights of one claim: a few microseconds of streaming
constexpr int64_t kRowsPerBlock = 64 * kTileRows;

// One product as the kernel sees it.
template <class Format>
struct Product {
  const typename Format::Input* x;
  int64_t x_stride;
  int64_t rows;
  const PanelLinear* weight;
  int64_t features;  // N
  Tensor out;
  Tensor residual;
};

const PanelLinear& panels_of(const char* op, const PackedLinear* weight) {
  check(weight != nullptr, op, ": weight missing");
  return static_cast<const PanelLinear&>(*weight);
}

// Adds bias, then residual, to features [column, column + n) of a row and stores them.
template <class Format, class Out, class Residual>
RTP_INLINE void finish_vector(const Product<Format>& product, int64_t row, int64_t column,
                              int64_t n, F32x16 sum) {
  if (product.weight->bias() != nullptr) sum = sum + load(product.weight->bias() + column);
  if (!product.residual.empty())
    sum = sum + load_run(row_of<Residual>(product.residual, row) + column, n);
  store_run(row_of<Out>(product.out, row) + column, sum, n);
}

template <class Format, class Out, class Residual, int kRows>
void compute_tile(const Product<Format>& product, int64_t row, int64_t panel) {
  F32x16 sums[kRows][kPanelVectors];
  for (auto& row_sums : sums)
    for (F32x16& sum : row_sums) sum = zero();
  multiply_tile<Format, kRows>(product.x + row * product.x_stride, product.x_stride,
                               product.weight->panel(panel), product.weight->steps(), sums);
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kPanelVectors; ++v) {
      const int64_t column = panel * kPanelWidth + v * kLanes;
      const int64_t n = std::min<int64_t>(kLanes, product.features - column);
      if (n > 0) finish_vector<Format, Out, Residual>(product, row + i, column, n, sums[i][v]);
    }
}

template <class Format, class Out, class Residual, int kRows = kTileRows>
void compute_rest(const Product<Format>& product, int64_t row, int64_t rows, int64_t panel) {
  if constexpr (kRows > 0) {
    if (rows >= kRows) return compute_tile<Format, Out, Residual, kRows>(product, row, panel);
    compute_rest<Format, Out, Residual, kRows - 1>(product, row, rows, panel);
  }
}

template <class Format, class Out, class Residual>
void compute_block(const Product<Format>& product, int64_t first_row, int64_t end_row,
                   int64_t panel) {
  for (int64_t row = first_row; row < end_row; row += kTileRows)
    compute_rest<Format, Out, Residual>(product, row, std::min<int64_t>(kTileRows, end_row - row),
                                        panel);
}

// Chunks are groups of panels; where panels are few, also blocks of rows.
template <class Format, class Out, class Residual>
void compute(ThreadPool& pool, const Product<Format>& product) {
  const PanelLinear& weight = *product.weight;
  const bool few_panels = weight.num_panels() < 4 * pool.num_threads();
  const int64_t block = few_panels ? std::min(product.rows, kRowsPerBlock) : product.rows;
  const int64_t blocks = (product.rows + block - 1) / block;
  const int64_t work = weight.panel_bytes() * ((block + kTileRows - 1) / kTileRows);
  const int64_t group = std::max<int64_t>(1, kChunkBytes / work);
  const int64_t groups = (weight.num_panels() + group - 1) / group;
  pool.run(groups * blocks, [&](int64_t chunk, int) {
    const int64_t first_row = chunk % blocks * block;
    const int64_t end_row = std::min(product.rows, first_row + block);
    const int64_t first = chunk / blocks * group;
    for (int64_t panel = first; panel < std::min(weight.num_panels(), first + group); ++panel)
      compute_block<Format, Out, Residual>(product, first_row, end_row, panel);
  });
}

template <class Format>
void compute_typed(ThreadPool& pool, const Product<Format>& product) {
  with_type("linear", product.out.dtype, product.out.data, [&](auto* out) {
    using Out = std::remove_pointer_t<decltype(out)>;
    const DType residual_dtype = product.residual.empty() ? DType::kF32 : product.residual.dtype;
    with_type("linear", residual_dtype, product.residual.data, [&](auto* residual) {
      compute<Format, Out, std::remove_pointer_t<decltype(residual)>>(pool, product);
    });
  });
}

// One row of x rounded to bf16 as the kernel multiplies it, padded to a whole pair.
template <class In>
void convert_row(const In* x, int64_t features, BFloat16* to) {
  for_lanes(features, [&](int64_t i, int64_t n) { store_run(to + i, load_run(x + i, n), n); });
  if (features % 2 != 0) to[features] = BFloat16{0};
}

template <class In>
void convert_row(const In* x, int64_t features, float* to, bool round) {
  for_lanes(features, [&](int64_t i, int64_t n) {
    const F32x16 value = load_run(x + i, n);
    store_run(to + i, round ? widen_bf16(round_bf16(value)) : value, n);
  });
  if (features % 2 != 0) to[features] = 0.0f;
}

}  // namespace

const void* CpuOps::linear_input(const Tensor& x, DType weight_dtype, int64_t& row_stride) {
  const int64_t rows = x.shape[0], features = x.shape[1];
  const int64_t padded = (features + 1) / 2 * 2;
  const bool as_pairs = weight_dtype == DType::kBF16 && sizeof(Bf16Format::Input) == 4 &&
                        Bf16Format::kInputsPerStep == 1;
  if (!as_pairs) {
    if (weight_dtype == DType::kF32 && x.dtype == DType::kF32) {
      row_stride = x.stride[0];
      return x.data;
    }
    auto* to = static_cast<float*>(linear_input_.at_least(rows * padded * 4));
    with_type("linear", x.dtype, x.data, [&](auto* from) {
      for_rows(rows, features, [&](int64_t row, int) {
        convert_row(from + row * x.stride[0], features, to + row * padded,
                    weight_dtype == DType::kBF16);
      });
    });
    row_stride = padded;
    return to;
  }
  const bool aligned = reinterpret_cast<uintptr_t>(x.data) % 4 == 0 && x.stride[0] % 2 == 0;
  if (x.dtype == DType::kBF16 && features % 2 == 0 && aligned) {
    row_stride = x.stride[0] / 2;
    return x.data;
  }
  auto* to = static_cast<BFloat16*>(linear_input_.at_least(rows * padded * 2));
  with_type("linear", x.dtype, x.data, [&](auto* from) {
    for_rows(rows, features, [&](int64_t row, int) {
      convert_row(from + row * x.stride[0], features, to + row * padded);
    });
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
  if (!args.residual.empty())
    check_features(spec.name.c_str(), "residual", args.residual, rows, features);
  if (rows == 0) return;
  int64_t stride = 0;
  const void* x = linear_input(args.x, spec.dtype, stride);
  const auto product = [&]<class Format>() {
    compute_typed<Format>(pool_, {.x = static_cast<const typename Format::Input*>(x),
                                  .x_stride = stride,
                                  .rows = rows,
                                  .weight = &weight,
                                  .features = features,
                                  .out = args.out,
                                  .residual = args.residual});
  };
  if (spec.dtype == DType::kF32)
    product.template operator()<F32Format>();
  else
    product.template operator()<Bf16Format>();
  if (args.lora != nullptr) args.lora->apply(args.x, args.out);
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
  for (int64_t step = 0; step < table.steps(); ++step) {
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
  check(args.tokens.dtype == DType::kI32, "embedding: tokens must be int32, got ",
        name_of(args.tokens.dtype));
  check_features("embedding", "out", args.out, rows, spec.in_features);
  row_slots_.assign(args.tokens.as<const int32_t>(), args.tokens.as<const int32_t>() + rows);
  std::vector<int32_t>& tokens = row_slots_;
  for (const Segment& segment : args.segments)
    for (int64_t row = segment.first_row; row < segment.first_row + int64_t{segment.rows}; ++row) {
      check(row >= 0 && row < rows, "embedding: row ", row, " out of range, there are ", rows);
      if (tokens[static_cast<size_t>(row)] != kTokenFromSlot) continue;
      check(args.slots != nullptr && segment.slot >= 0 &&
                segment.slot < args.slots->last_token.shape[0],
            "embedding: slot ", segment.slot, " out of range");
      tokens[static_cast<size_t>(row)] = args.slots->last_token.as<const int32_t>()[segment.slot];
    }
  for (int64_t row = 0; row < rows; ++row)
    check(tokens[static_cast<size_t>(row)] >= 0 &&
              tokens[static_cast<size_t>(row)] < spec.out_features(),
          "embedding: token id ", tokens[static_cast<size_t>(row)], " of row ", row,
          " out of range, the vocabulary has ", spec.out_features());
  with_type("embedding", args.out.dtype, args.out.data, [&](auto* out) {
    for_rows(rows, spec.in_features * 8, [&](int64_t row, int) {
      gather_row(table, tokens[static_cast<size_t>(row)], out + row * args.out.stride[0]);
    });
  });
}

}  // namespace rtp_llm::cpu
