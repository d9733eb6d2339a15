// CpuDevice: anonymous memory in huge pages, memfd for what peers may map, and the CPU's ops.
#pragma once

#include <array>
#include <chrono>
#include <memory>
#include <mutex>

#include "device/device.h"

namespace rtp_llm::cpu {

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(const DeviceOptions& options);
  ~CpuDevice() override;

  std::string backend() const override { return "cpu"; }
  std::string isa() const override { return RTP_CPU_ISA; }
  Ops& ops() override { return *ops_; }
  bool runs_behind() const override { return false; }
  bool host_reaches_memory() const override { return true; }

  Buffer allocate(int64_t bytes, const std::string& tag) override;
  Buffer allocate_shareable(int64_t bytes, const std::string& tag) override;
  Buffer allocate_pinned(int64_t bytes, const std::string& tag) override { return allocate(bytes, tag); }
  std::vector<Allocation> allocations() const override;

  void copy(void* to, const void* from, int64_t bytes) override;
  void zero(void* at, int64_t bytes) override;
  void copy_async(void* to, const void* from, int64_t bytes) override { copy(to, from, bytes); }
  StreamEvent record() override;
  bool done(StreamEvent) override { return true; }
  void wait(StreamEvent) override {}
  double seconds_between(StreamEvent begin, StreamEvent end) override;
  void synchronize() override {}
  double read_rate(int64_t bytes, int rounds) override;

 private:
  Buffer track(void* data, int64_t bytes, int64_t mapped, int fd, const std::string& tag);
  std::string describe_allocations() const;

  const int num_threads_;
  using Clock = std::chrono::steady_clock;
  std::array<Clock::time_point, kTimedEvents> event_times_{};  // by number, the last ones
  uint64_t num_events_ = 0;

  mutable std::mutex mutex_;
  std::vector<Allocation> allocations_;
  std::unique_ptr<Ops> ops_;  // last: its scratch is freed before the list goes
};

}  // namespace rtp_llm::cpu
