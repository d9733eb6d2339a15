// CudaDevice: memory, the stream and the ops of one NVIDIA GPU.
//
// One stream for the engine thread's work (compute) and one for the transfer thread's (transfer). Buffers of
// allocate() are one cudaMalloc each, so that a peer that maps one sees nothing else.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device/device.h"

namespace rtp_llm::cuda {

class CudaOps;

// What kernels are chosen by.
struct GpuProperties {
  std::string name;
  int index = 0;
  int major = 0, minor = 0;  // compute capability
  int num_sms = 0;
  int max_shared_bytes = 0;  // dynamic shared memory that one CTA may have

  bool hopper() const { return major == 9; }
};

class CudaDevice final : public Device {
 public:
  // Throws Unavailable if there is no such GPU, no driver, or no kernel image for it.
  explicit CudaDevice(const DeviceOptions& options);
  ~CudaDevice() override;

  std::string backend() const override { return "cuda"; }
  std::string isa() const override;
  Ops& ops() override;

  Buffer allocate(int64_t bytes, const std::string& tag) override;
  Buffer allocate_shareable(int64_t bytes, const std::string& tag) override;
  std::vector<Allocation> allocations() const override;

  void copy(void* to, const void* from, int64_t bytes) override;
  void zero(void* at, int64_t bytes) override;
  void synchronize() override;

  const GpuProperties& properties() const { return properties_; }
  cudaStream_t stream() const { return compute_; }
  // Makes this GPU the calling thread's: each thread that launches or copies does so once.
  void bind_thread() const;

 private:
  std::string describe_allocations() const;

  GpuProperties properties_;
  cudaStream_t compute_ = nullptr;
  mutable std::mutex mutex_;  // guards allocations_
  std::vector<Allocation> allocations_;
  std::unique_ptr<CudaOps> ops_;  // last: its buffers go first
};

}  // namespace rtp_llm::cuda
