// gated_mlp for many rows: gate and up are multiplied panel by panel and activated while their sums lie in the cache,
// so gate_up_out isn't written (512 rows of a 0.5B model: 20 MB a layer). Bits are those of the ops one by one.
#include "device/cpu/activation.h"
#include "device/cpu/cpu_ops.h"
#include "device/cpu/linear_product.h"
#include "device/cpu/rows.h"

namespace rtp_llm::cpu {
namespace {

// Whether the rows' sums of two panels fit the cache, and gate and up lie in panels of their own.
template <class Format>
bool fuses(const GatedMlpArgs& args) {
  constexpr int kTileRows = Kernel<Format>::kTileRows;
  const int64_t rows = args.x.shape[0];
  return args.gate_up_out.dtype == DType::kF32 && args.activated.shape[1] % kPanelWidth == 0 && rows > kTileRows &&
         std::min(rows, Kernel<Format>::kMaxRows) <= kMaxFewTiles * kTileRows;
}

// Stores act(gate) * up of a region's rows, one panel of features of each, after their biases.
template <Activation kActivation, class Format, class Out>
void finish_gated(const Product<Format>& product, const Region& region, int64_t panel, const float* gate,
                  const float* up) {
  const int64_t first = panel * kPanelWidth;
  const float* gate_bias = product.weight->bias();
  const float* up_bias = gate_bias == nullptr ? nullptr : gate_bias + product.features() / 2;
  for (int64_t row = region.first_row; row < region.end_row; ++row)
    for (int column = 0; column < kPanelWidth; column += kLanes, gate += kLanes, up += kLanes) {
      F32x16 a = load(gate), b = load(up);
      if (gate_bias != nullptr) a = a + load(gate_bias + first + column), b = b + load(up_bias + first + column);
      store(row_of<Out>(product.out, row) + first + column, activate<kActivation>(a) * b);
    }
}

template <Activation kActivation, class Format, class Out>
void compute(ThreadPool& pool, const Product<Format>& product) {
  const PanelLinear& weight = *product.weight;
  const int64_t half = weight.num_panels() / 2;
  for_regions<Format>(pool, product.rows, half, 2 * weight.panel_bytes(), [&](const Region& region) {
    alignas(64) float gate[kBlockedSums<Format>], up[kBlockedSums<Format>];
    Kernel<Format> kernel;
    for (int64_t panel = region.first_panel; panel < region.end_panel; ++panel) {
      const bool last = panel + 1 == region.end_panel;
      multiply_blocked(kernel, product, region, panel, 0, weight.steps(), weight.panel(panel + half), gate);
      multiply_blocked(kernel, product, region, panel + half, 0, weight.steps(),
                       last ? nullptr : weight.panel(panel + 1), up);
      finish_gated<kActivation, Format, Out>(product, region, panel, gate, up);
    }
  });
}

}  // namespace

void CpuOps::gated_mlp(const GatedMlpArgs& args) {
  const PanelLinear& weight = panels_of("gated_mlp", args.gate_up);
  const bool bf16 = weight.spec().dtype == DType::kBF16;
  if (!(bf16 ? fuses<Bf16Format>(args) : fuses<F32Format>(args))) return Ops::gated_mlp(args);
  const int64_t rows = args.x.shape[0], features = args.activated.shape[1];
  check_features("gated_mlp", "x", args.x, rows, weight.spec().in_features);
  check_features("gated_mlp", "activated", args.activated, rows, features);
  check(weight.spec().out_features() == 2 * features, "gated_mlp: gate_up must have ", 2 * features, " features, got ",
        weight.spec().out_features());
  int64_t stride = 0;
  const void* x = linear_input(args.x, weight.spec().dtype, stride);
  with_type("gated_mlp", args.activated.dtype, args.activated.data, [&](auto* out) {
    const auto run = [&]<Activation kActivation>() {
      const auto product = [&]<class Format>() {
        compute<kActivation, Format, std::remove_pointer_t<decltype(out)>>(
            pool_, Product<Format>{.x = static_cast<const typename Format::Input*>(x),
                                   .x_stride = stride,
                                   .rows = rows,
                                   .weight = &weight,
                                   .out = args.activated});
      };
      bf16 ? product.template operator()<Bf16Format>() : product.template operator()<F32Format>();
    };
    with_activation(args.activation, run);
  });
  linear({.x = args.activated, .weight = args.down, .out = args.out, .residual = args.residual});
}

}  // namespace rtp_llm::cpu
