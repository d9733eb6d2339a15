// RopeCache: cos and sin of each position, made on demand in pages and kept.
//
// Angles are f32(inv_freq * position), as Hugging Face computes them; their cos and sin are rounded from
// double precision. Filled on the engine thread before an op's threads read it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "device/scalar_math.h"

namespace rtp_llm::cpu {

class RopeCache {
 public:
  explicit RopeCache(std::vector<float> inv_freq) : inv_freq_(std::move(inv_freq)) {}

  const std::vector<float>& inv_freq() const { return inv_freq_; }

  // Makes the page of `position`.
  void prepare(int64_t position) {
    const auto page = static_cast<size_t>(position / kPagePositions);
    if (page >= pages_.size()) pages_.resize(page + 1);
    if (pages_[page] != nullptr) return;
    pages_[page] = std::make_unique<float[]>(static_cast<size_t>(kPagePositions) * 2 * inv_freq_.size());
    for (int64_t i = 0; i < kPagePositions; ++i) fill(static_cast<int64_t>(page) * kPagePositions + i);
  }

  // [dim / 2] each. REQUIRES: prepare(position).
  const float* cos(int64_t position) const { return at(position); }
  const float* sin(int64_t position) const { return at(position) + inv_freq_.size(); }

 private:
  static constexpr int64_t kPagePositions = 256;

  float* at(int64_t position) const {
    const auto page = static_cast<size_t>(position / kPagePositions);
    const auto within = static_cast<size_t>(position % kPagePositions);
    return pages_[page].get() + within * 2 * inv_freq_.size();
  }

  void fill(int64_t position) {
    float* row = at(position);
    for (size_t i = 0; i < inv_freq_.size(); ++i) {
      const float angle = inv_freq_[i] * static_cast<float>(position);
      const SinCos value = sin_cos_f64(angle);
      row[i] = static_cast<float>(value.cos);
      row[inv_freq_.size() + i] = static_cast<float>(value.sin);
    }
  }

  std::vector<float> inv_freq_;
  std::vector<std::unique_ptr<float[]>> pages_;  // [kPagePositions][cos | sin][dim / 2]
};

}  // namespace rtp_llm::cpu
