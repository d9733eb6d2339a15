// CpuDevice: anonymous memory in huge pages, memfd for what peers may map, and the CPU's ops.
#pragma once

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

  Buffer allocate(int64_t bytes, const std::string& tag) override;
  Buffer allocate_shareable(int64_t bytes, const std::string& tag) override;
  std::vector<Allocation> allocations() const override;

  void copy(void* to, const void* from, int64_t bytes) override;
  void zero(void* at, int64_t bytes) override;
  void synchronize() override {}

 private:
  Buffer track(void* data, int64_t bytes, int64_t mapped, int fd, const std::string& tag);
  std::string describe_allocations() const;

  mutable std::mutex mutex_;
  std::vector<Allocation> allocations_;
  std::unique_ptr<Ops> ops_;  // last: its scratch is freed before the list goes
};

}  // namespace rtp_llm::cpu
