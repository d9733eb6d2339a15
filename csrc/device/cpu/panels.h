// How weights lie: panels of kPanelWidth output features, sequential in K, so that a product streams
// them once and vectorises over N.
//
//   f32   [N / width][K]    [width]      floats
//   bf16  [N / width][K / 2][width][2]   pairs (k even in the low half), one u32 each
//
// K of bf16 is padded to kBf16Padding and N to whole panels with zeros.
#pragma once

#include <cstdint>

#include "device/cpu/vec.h"
#include "device/ops.h"

namespace rtp_llm::cpu {

#if defined(RTP_CPU_AVX512)
inline constexpr int kPanelVectors = 4;
#elif defined(RTP_CPU_AVX2)
inline constexpr int kPanelVectors = 2;
#else
inline constexpr int kPanelVectors = 1;
#endif
inline constexpr int kPanelWidth = kPanelVectors * kLanes;

// Elements of K that one step of a bf16 product takes: a pair, or a row of an AMX tile.
#if defined(__AMX_BF16__)
inline constexpr int64_t kBf16Padding = 32;
#else
inline constexpr int64_t kBf16Padding = 2;
#endif
inline constexpr int64_t padded_features(int64_t features) {
  return (features + kBf16Padding - 1) / kBf16Padding * kBf16Padding;
}

class PanelLinear final : public PackedLinear {
 public:
  PanelLinear(LinearSpec spec, int leaves, Device& device)
      : PackedLinear(std::move(spec)),
        leaves_(leaves),
        steps_(spec_.dtype == DType::kBF16 ? padded_features(spec_.in_features) / 2 : spec_.in_features),
        num_panels_((spec_.out_features() + kPanelWidth - 1) / kPanelWidth),
        weights_(device.allocate(num_panels_ * panel_bytes(), spec_.name)) {
    if (spec_.bias) bias_ = device.allocate(num_panels_ * kPanelWidth * 4, spec_.name + ".bias");
  }

  int64_t steps() const { return steps_; }  // K, or pairs of K
  int leaves() const { return leaves_; }    // of the tree that its products are summed as over K
  int64_t num_panels() const { return num_panels_; }
  int64_t panel_bytes() const { return steps_ * kPanelWidth * 4; }  // a step is 4 bytes a feature
  uint32_t* panel(int64_t index) const {
    return static_cast<uint32_t*>(weights_.data()) + index * steps_ * kPanelWidth;
  }
  float* bias() const { return static_cast<float*>(bias_.data()); }  // [N padded] or nullptr

 private:
  int leaves_;
  int64_t steps_;
  int64_t num_panels_;
  Buffer weights_;
  Buffer bias_;
};

}  // namespace rtp_llm::cpu
