// CudaDevice: memory, the stream and the ops of one NVIDIA GPU.
//
// The main stream has the engine thread's work; copy() and zero() run on a stream of their own, beside it, copy_ahead()
// on another. Each buffer is one cudaMalloc, so that a peer that maps one sees nothing else.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
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
  std::string isa() const override;  // "sm90"
  Ops& ops() override;
  bool runs_behind() const override { return true; }
  bool host_reaches_memory() const override { return false; }

  Buffer allocate(int64_t bytes, const std::string& tag) override;
  Buffer allocate_shareable(int64_t bytes, const std::string& tag) override;
  Buffer allocate_pinned(int64_t bytes, const std::string& tag) override;
  std::vector<Allocation> allocations() const override;
  std::optional<DeviceMemory> memory() const override;

  void copy(void* to, const void* from, int64_t bytes) override;
  void zero(void* at, int64_t bytes) override;

  void copy_async(void* to, const void* from, int64_t bytes) override;
  void copy_ahead(void* to, const void* from, int64_t bytes) override;
  StreamEvent record() override;
  bool done(StreamEvent event) override;
  void wait(StreamEvent event) override;
  double seconds_between(StreamEvent begin, StreamEvent end) override;
  void synchronize() override;
  double read_rate(int64_t bytes, int rounds) override;
  bool has_graphs() const override { return true; }
  void replay(uint64_t key, const std::function<void()>& launch) override;

  const GpuProperties& properties() const { return properties_; }
  cudaStream_t stream() const { return compute_; }
  // Makes this GPU the calling thread's: each thread that launches or copies does so once.
  void bind_thread() const;

 private:
  Buffer track(void* data, int64_t bytes, const std::string& tag, cudaError_t (*free)(void*));
  std::string describe_allocations() const;
  cudaEvent_t event_of(uint64_t number) const { return events_[number % kTimedEvents]; }

  GpuProperties properties_;
  cudaStream_t compute_ = nullptr;
  cudaStream_t copies_ = nullptr;
  cudaStream_t ahead_ = nullptr;
  cudaEvent_t copied_ahead_ = nullptr;
  std::vector<cudaEvent_t> events_;         // [kTimedEvents], used in turn
  std::atomic<uint64_t> last_recorded_{0};  // number of an StreamEvent
  std::atomic<uint64_t> last_done_{0};      // no number up to this one is pending
  std::unordered_map<uint64_t, cudaGraphExec_t> graphs_;
  mutable std::mutex mutex_;  // guards allocations_
  std::vector<Allocation> allocations_;
  std::unique_ptr<CudaOps> ops_;
};

}  // namespace rtp_llm::cuda
