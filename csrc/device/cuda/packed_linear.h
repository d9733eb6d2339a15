// CudaLinear: a weight on the GPU in the layout that all linear kernels read (linear.h); and how it gets there.
#pragma once

#include <memory>
#include <vector>

#include "device/cuda/cuda_device.h"
#include "device/cuda/linear.h"
#include "device/ops.h"

namespace rtp_llm::cuda {

class CudaLinear final : public PackedLinear {
 public:
  CudaLinear(LinearSpec spec, Buffer weights, Buffer bias)
      : PackedLinear(std::move(spec)), weights_(std::move(weights)), bias_(std::move(bias)) {}

  const void* weights() const { return weights_.data(); }
  const float* bias() const { return static_cast<const float*>(bias_.data()); }  // null: none
  bool gated() const { return spec_.gated; }  // rows of gate and up alternate: only gated_mlp multiplies it

 private:
  Buffer weights_, bias_;
};

// Throws InvalidArgument for a weight that is missing or another backend's.
const CudaLinear& as_cuda(const PackedLinear* weight, const char* op);

// Host memory in which rows wait for their way to the GPU, in pieces used in turn. One a device: weights are loaded by
// one thread.
class UploadRing {
 public:
  static constexpr int64_t kPieceBytes = int64_t{16} << 20;

  explicit UploadRing(CudaDevice& device);
  ~UploadRing();
  UploadRing(const UploadRing&) = delete;
  UploadRing& operator=(const UploadRing&) = delete;

  struct Piece {
    void* host;
    void* device;
  };
  // A free piece; waits until what it held has been packed.
  Piece next();
  // Copies `bytes` of the piece that next() gave to the GPU; the caller launches what reads it, then calls used().
  void upload(const Piece& piece, int64_t bytes);
  void used();
  void drain();

 private:
  static constexpr int kPieces = 4;

  CudaDevice& device_;
  Buffer host_, staged_;
  cudaEvent_t packed_[kPieces] = {};
  int at_ = -1;
};

}  // namespace rtp_llm::cuda
