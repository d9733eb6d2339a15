// CudaLinear: a weight on the GPU in the layout that all linear kernels read (linear.h); and how it gets there.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "device/cuda/cuda_device.h"
#include "device/cuda/linear.h"
#include "device/ops.h"

namespace rtp_llm::cuda {

class CudaLinear final : public PackedLinear {
 public:
  CudaLinear(LinearSpec spec, int leaves, Buffer weights, Buffer bias)
      : PackedLinear(std::move(spec)), leaves_(leaves), weights_(std::move(weights)), bias_(std::move(bias)) {}

  void* weights() { return weights_.data(); }
  float* bias() { return static_cast<float*>(bias_.data()); }
  const void* weights() const { return weights_.data(); }
  const float* bias() const { return static_cast<const float*>(bias_.data()); }  // null: none
  int leaves() const { return leaves_; }      // of the tree that its products are summed as over K
  bool gated() const { return spec_.gated; }  // rows of gate and up alternate: only gated_mlp multiplies it

 private:
  int leaves_;
  Buffer weights_, bias_;
};

// Throws InvalidArgument for a weight that is missing or another backend's.
const CudaLinear& as_cuda(const PackedLinear* weight, const char* op);

// Host memory in which rows wait for their way to the GPU, in pieces used in turn, by any number of threads. One a
// device. Copies have a stream of their own, so that none waits for the packing of the one
// before.
class UploadRing {
 public:
  static constexpr int64_t kPieceBytes = LinearPacker::kMostFillBytes;

  explicit UploadRing(CudaDevice& device);
  ~UploadRing();
  UploadRing(const UploadRing&) = delete;
  UploadRing& operator=(const UploadRing&) = delete;

  // One piece; given back when it dies.
  class Piece {
   public:
    Piece(UploadRing& ring, int index) : ring_(&ring, {index}) {}
    void* host() const { return static_cast<uint8_t*>(ring_->host_.data()) + index() * kPieceBytes; }
    void* device() const { return static_cast<uint8_t*>(ring_->staged_.data()) + index() * kPieceBytes; }
    // Copies its first `bytes` to the GPU and calls `pack`, which launches what reads them there.
    template <class Pack>
    void send(int64_t bytes, const Pack& pack) {
      const std::lock_guard lock(ring_->mutex_);
      ring_->copy(index(), device(), host(), bytes);
      pack();
      ring_->packed(index());
    }

   private:
    struct GiveBack {
      int index;
      void operator()(UploadRing* ring) const { ring->give_back(index); }
    };
    int index() const { return ring_.get_deleter().index; }
    std::unique_ptr<UploadRing, GiveBack> ring_;
  };
  // Waits until what the piece held has been packed.
  Piece take();
  void drain();

 private:
  static constexpr int kPieces = 24;

  void give_back(int piece);
  // REQUIRE: mutex_ is held.
  void copy(int piece, void* to, const void* from, int64_t bytes);
  void packed(int piece);

  CudaDevice& device_;
  Buffer host_, staged_;
  cudaStream_t copies_ = nullptr;
  cudaEvent_t copied_[kPieces] = {}, packed_[kPieces] = {};
  std::mutex mutex_;  // guards what follows, and the streams
  std::condition_variable given_back_;
  std::deque<int> free_;  // the one that was sent first comes first
};

}  // namespace rtp_llm::cuda
