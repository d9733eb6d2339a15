// Scratch: workspace that grows to the largest call seen and is then reused. Contents don't survive
// a call to `at_least`.
#pragma once

#include <string>

#include "device/device.h"

namespace rtp_llm::cpu {

class Scratch {
 public:
  Scratch(Device& device, std::string tag) : device_(device), tag_(std::move(tag)) {}

  void* at_least(int64_t bytes) {
    if (bytes > buffer_.bytes()) {
      buffer_ = Buffer();
      buffer_ = device_.allocate(bytes + bytes / 4, tag_);
    }
    return buffer_.data();
  }

 private:
  Device& device_;
  std::string tag_;
  Buffer buffer_;
};

}  // namespace rtp_llm::cpu
