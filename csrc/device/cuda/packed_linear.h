// CudaLinear: a weight on the GPU in the layout that all linear kernels read (linear.h); and how it gets there.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
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

// Host memory in which rows wait for their way to the GPU, in pieces used in turn, by any number of threads. One a
// device.
class UploadRing {
 public:
  static constexpr int64_t kPieceBytes = int64_t{4} << 20;

  explicit UploadRing(CudaDevice& device);
  ~UploadRing();
  UploadRing(const UploadRing&) = delete;
  UploadRing& operator=(const UploadRing&) = delete;

  struct Piece {
    int index;
    void* host;
    void* device;
  };
  // A piece that is the caller's until send(); waits until what it held has been packed.
  Piece take();
  // Copies `bytes` of the piece to the GPU and calls `pack`, which launches what reads them there.
  template <class Pack>
  void send(const Piece& piece, int64_t bytes, const Pack& pack) {
    const std::lock_guard lock(mutex_);
    give_back(piece);  // now, so that it isn't lost if a launch throws
    device_.copy_async(piece.device, piece.host, bytes);
    pack();
    packed(piece);
  }
  void drain();

 private:
  static constexpr int kPieces = 16;

  // REQUIRE: mutex_ is held.
  void give_back(const Piece& piece);
  void packed(const Piece& piece);

  CudaDevice& device_;
  Buffer host_, staged_;
  cudaEvent_t packed_[kPieces] = {};
  std::mutex mutex_;  // guards what follows, and the main stream
  std::condition_variable given_back_;
  bool taken_[kPieces] = {};
  int next_ = 0;
};

}  // namespace rtp_llm::cuda
