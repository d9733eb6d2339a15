// How weights lie: panels of kPanelWidth output features, sequential in K, so that a product streams
// them once and vectorises over N.
//
//   f32   [N / width][K]    [width]      floats
//   bf16  [N / width][K / 2][width][2]   pairs (k even in the low half), one u32 each
//
// K is padded to pairs and N to whole panels with zeros.
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

class PanelLinear final : public PackedLinear {
 public:
  PanelLinear(LinearSpec spec, Device& device)
      : PackedLinear(std::move(spec)),
        steps_(spec_.dtype == DType::kBF16 ? (spec_.in_features + 1) / 2 : spec_.in_features),
        num_panels_((spec_.out_features() + kPanelWidth - 1) / kPanelWidth),
        weights_(device.allocate(num_panels_ * panel_bytes(), spec_.name)) {
    if (spec_.bias) bias_ = device.allocate(num_panels_ * kPanelWidth * 4, spec_.name + ".bias");
  }

  int64_t steps() const { return steps_; }  // K, or pairs of K
  int64_t num_panels() const { return num_panels_; }
  int64_t panel_bytes() const { return steps_ * kPanelWidth * 4; }  // a step is 4 bytes a feature
  uint32_t* panel(int64_t index) const {
    return static_cast<uint32_t*>(weights_.data()) + index * steps_ * kPanelWidth;
  }
  float* bias() const { return static_cast<float*>(bias_.data()); }  // [N padded] or nullptr

 private:
  int64_t steps_;
  int64_t num_panels_;
  Buffer weights_;
  Buffer bias_;
};

}  // namespace rtp_llm::cpu
