// ChecksumSum: what the checksum needs beside the kernel. It runs beside the engine's work, on a stream of its own.
// Thread rule: any; one sum at a time.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>

#include "device/cuda/cuda_device.h"

namespace rtp_llm::cuda {

// The vectors of one layer in one block: both planes, all heads, `tokens` tokens.
struct ChecksumVectors {
  const uint8_t* block;  // of the layer
  int64_t plane_offset[2];
  int64_t head_stride, token_stride;
  int heads, words;
  int group, layer, first_token, tokens;
  int64_t first_position;
};

class ChecksumSum {
 public:
  explicit ChecksumSum(CudaDevice& device);
  ~ChecksumSum();
  ChecksumSum(const ChecksumSum&) = delete;
  ChecksumSum& operator=(const ChecksumSum&) = delete;

  uint64_t of(const ChecksumVectors& vectors);

 private:
  std::mutex mutex_;
  Buffer sum_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace rtp_llm::cuda
