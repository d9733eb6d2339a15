#include "device/cuda/packed_linear.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "device/cuda/cuda_check.h"
#include "device/cuda/cuda_ops.h"

namespace rtp_llm::cuda {

const CudaLinear& as_cuda(const PackedLinear* weight, const char* op) {
  const auto* found = dynamic_cast<const CudaLinear*>(weight);
  check(found != nullptr, op, ": ", weight == nullptr ? "the weight is missing" : "the weight is another backend's");
  return *found;
}

// ---- UploadRing

UploadRing::UploadRing(CudaDevice& device)
    : device_(device),
      host_(device.allocate_pinned(kPieces * kPieceBytes, "upload_ring.host")),
      staged_(device.allocate(kPieces * kPieceBytes, "upload_ring")) {
  cuda_check(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), "cudaStreamCreate");
  for (int piece = 0; piece < kPieces; ++piece) {
    cuda_check(cudaEventCreateWithFlags(&copied_[piece], cudaEventDisableTiming), "cudaEventCreate");
    // Who waits for a piece leaves the core to those that read.
    cuda_check(cudaEventCreateWithFlags(&packed_[piece], cudaEventDisableTiming | cudaEventBlockingSync),
               "cudaEventCreate");
    free_.push_back(piece);
  }
}

UploadRing::~UploadRing() {
  for (cudaEvent_t event : packed_) cudaEventDestroy(event);
  for (cudaEvent_t event : copied_) cudaEventDestroy(event);
  cudaStreamDestroy(copies_);
}

UploadRing::Piece UploadRing::take() {
  device_.bind_thread();
  int index;
  {
    std::unique_lock lock(mutex_);
    given_back_.wait(lock, [&] { return !free_.empty(); });
    index = free_.front();
    free_.pop_front();
  }
  Piece piece(*this, index);
  cuda_check(cudaEventSynchronize(packed_[index]), "packing of weights");
  return piece;
}

void UploadRing::give_back(int piece) {
  {
    const std::lock_guard lock(mutex_);
    free_.push_back(piece);
  }
  given_back_.notify_one();
}

void UploadRing::copy(int piece, void* to, const void* from, int64_t bytes) {
  cuda_check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, copies_), "copy of weights");
  cuda_check(cudaEventRecord(copied_[piece], copies_), "copy of weights");
  cuda_check(cudaStreamWaitEvent(device_.stream(), copied_[piece], 0), "copy of weights");
}

void UploadRing::packed(int piece) {
  cuda_check(cudaEventRecord(packed_[piece], device_.stream()), "packing of weights");
}

void UploadRing::drain() {
  const std::lock_guard lock(mutex_);
  device_.synchronize();
}

// ---- The packer

namespace {

class CudaPacker final : public LinearPacker {
 public:
  CudaPacker(CudaDevice& device, UploadRing& ring, const LinearSpec& spec, int leaves)
      : CudaPacker(device, ring, spec, nullptr, nullptr) {
    check(spec.dtype == DType::kBF16, "backend 'cuda': ", spec.name, " in ", name_of(spec.dtype),
          " is not supported, bfloat16 is");
    check(spec.in_features > 0 && spec.in_features % 8 == 0, spec.name, ": ", spec.in_features,
          " input features, a multiple of 8 is supported");
    check(!spec.gated ||
              (spec.parts.size() == 2 && spec.parts[0].rows == spec.parts[1].rows && spec.parts[0].rows % 8 == 0),
          spec.name, ": gate and up must have the same number of rows, a multiple of 8");
    Buffer weights = device.allocate(packed_bytes(spec.out_features(), spec.in_features), "weights." + spec.name);
    Buffer bias;
    if (spec.bias) bias = device.allocate(spec.out_features() * size_of(DType::kF32), "weights." + spec.name + ".bias");
    made_ = std::make_unique<CudaLinear>(spec, leaves, std::move(weights), std::move(bias));
    weights_ = made_->weights();
    bias_ = made_->bias();
  }
  CudaPacker(CudaDevice& device, UploadRing& ring, CudaLinear& given)
      : CudaPacker(device, ring, given.spec(), given.weights(), given.bias()) {}

  void write_rows(int part, int64_t first_row, const Tensor& rows) override {
    const int64_t count = rows.shape[0], width = rows.ndim == 2 ? rows.shape[1] : 0;
    check(rows.contiguous(), spec_.name, ".", part_of(part).name, ": rows must be contiguous");
    const int64_t row_bytes = width * size_of(rows.dtype);
    const int64_t most = std::max<int64_t>(1, UploadRing::kPieceBytes / std::max<int64_t>(1, row_bytes));
    for (int64_t done = 0; done < count; done += most) {
      const int64_t here = std::min(most, count - done);
      fill_rows(part, first_row + done, here, width, rows.dtype, [&](void* to) {
        std::memcpy(to, rows.as<const uint8_t>() + done * row_bytes, static_cast<size_t>(here * row_bytes));
        return true;
      });
    }
  }

  bool fill_rows(int part, int64_t first_row, int64_t rows, int64_t row_elements, DType dtype,
                 const Fill& fill) override {
    const LinearPart& to = part_of(part);
    check(row_elements == spec_.in_features, spec_.name, ".", to.name, ": rows have ", row_elements,
          " elements, expected ", spec_.in_features);
    check(first_row >= 0 && first_row + rows <= to.rows, spec_.name, ".", to.name, ": rows [", first_row, ", ",
          first_row + rows, ") out of range, there are ", to.rows);
    const int64_t bytes = rows * row_elements * size_of(dtype);
    check(bytes <= UploadRing::kPieceBytes, spec_.name, ".", to.name, ": ", rows, " rows of ", row_elements,
          " elements are ", bytes, " bytes, at most ", UploadRing::kPieceBytes, " go at once");
    UploadRing::Piece piece = ring_.take();
    if (!fill(piece.host())) return false;
    const PackRows packed{.rows = piece.device(),
                          .dtype = dtype,
                          .count = static_cast<int>(rows),
                          .in_features = static_cast<int>(spec_.in_features),
                          .out_features = static_cast<int>(spec_.out_features()),
                          .first_row = static_cast<int>((spec_.gated ? 0 : first_of(part)) + first_row),
                          .interleave = spec_.gated ? part : -1,
                          .weights = weights_};
    piece.send(bytes, [&] { pack_rows(device_.stream(), packed); });
    rows_written_[static_cast<size_t>(part)] += rows;
    return true;
  }

  void write_bias(int part, const Tensor& bias) override {
    const LinearPart& to = part_of(part);
    check(spec_.bias && bias.numel() == to.rows, spec_.name, ".", to.name, ": bias of ", bias.numel(),
          " elements, expected ", spec_.bias ? to.rows : 0);
    std::vector<float> values(static_cast<size_t>(to.rows));
    for (int64_t i = 0; i < to.rows; ++i)
      values[static_cast<size_t>(i)] =
          bias.dtype == DType::kF32 ? bias.as<const float>()[i] : to_f32(bias.as<const BFloat16>()[i]);
    if (!spec_.gated) {
      device_.copy(bias_ + first_of(part), values.data(), to.rows * size_of(DType::kF32));
    } else {
      for (int64_t i = 0; i < to.rows; i += 8)
        device_.copy(bias_ + packed_row(static_cast<int>(i), part), values.data() + i, 8 * size_of(DType::kF32));
    }
    ++biases_written_;
  }

  std::unique_ptr<PackedLinear> finish() override {
    for (size_t i = 0; i < spec_.parts.size(); ++i)
      check(rows_written_[i] == spec_.parts[i].rows, spec_.name, ".", spec_.parts[i].name, ": ",
            rows_written_[i].load(), " of ", spec_.parts[i].rows, " rows were written");
    check(!spec_.bias || biases_written_ == static_cast<int>(spec_.parts.size()), spec_.name, ": ", biases_written_,
          " of ", spec_.parts.size(), " biases were written");
    ring_.drain();
    return std::move(made_);
  }

 private:
  CudaPacker(CudaDevice& device, UploadRing& ring, const LinearSpec& spec, void* weights, float* bias)
      : device_(device), ring_(ring), spec_(spec), weights_(weights), bias_(bias), rows_written_(spec.parts.size()) {}
  const LinearPart& part_of(int part) const {
    check(part >= 0 && part < static_cast<int>(spec_.parts.size()), spec_.name, ": part ", part, " out of range, has ",
          spec_.parts.size());
    return spec_.parts[static_cast<size_t>(part)];
  }
  int64_t first_of(int part) const {
    int64_t first = 0;
    for (int i = 0; i < part; ++i) first += spec_.parts[static_cast<size_t>(i)].rows;
    return first;
  }

  CudaDevice& device_;
  UploadRing& ring_;
  const LinearSpec spec_;
  std::unique_ptr<CudaLinear> made_;  // null: it was there
  void* weights_;
  float* bias_;
  std::vector<std::atomic<int64_t>> rows_written_;  // of each part
  int biases_written_ = 0;
};

}  // namespace

std::unique_ptr<LinearPacker> CudaOps::pack(const LinearSpec& spec) {
  device_.bind_thread();
  return std::make_unique<CudaPacker>(device_, *upload_, spec, spec.row_parallel ? tree_leaves_ : 1);
}

std::unique_ptr<LinearPacker> CudaOps::repack(PackedLinear& weight) {
  auto* linear = dynamic_cast<CudaLinear*>(&weight);
  check(linear != nullptr, "weight '", weight.spec().name, "' is another backend's");
  device_.bind_thread();
  return std::make_unique<CudaPacker>(device_, *upload_, *linear);
}

}  // namespace rtp_llm::cuda
