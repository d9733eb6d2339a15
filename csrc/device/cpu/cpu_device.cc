#include "device/cpu/cpu_device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "device/cpu/cpu_ops.h"
#include "device/memory_rate.h"
#include "tensor/check.h"

namespace rtp_llm::cpu {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kSmallPage = 4096;

int64_t rounded_up(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

// Reserves `bytes` (whole huge pages) at a huge-page border; nullptr if there is no room.
void* reserve_aligned(int64_t bytes) {
  const auto size = static_cast<size_t>(bytes + kHugePage);
  void* at = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<uintptr_t>(at);
  const uintptr_t aligned = (begin + kHugePage - 1) & ~static_cast<uintptr_t>(kHugePage - 1);
  const uintptr_t end = begin + size;
  const uintptr_t aligned_end = aligned + static_cast<uintptr_t>(bytes);
  if (aligned > begin) munmap(at, aligned - begin);
  if (end > aligned_end) munmap(reinterpret_cast<void*>(aligned_end), end - aligned_end);
  return reinterpret_cast<void*>(aligned);
}

// Maps fd (-1: anonymous memory), zero-filled; nullptr with errno set if that fails.
void* map_pages(int64_t mapped, int fd) {
  const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  const auto size = static_cast<size_t>(mapped);
  void* const place = mapped >= kHugePage ? reserve_aligned(mapped) : nullptr;
  if (mapped >= kHugePage && place == nullptr) return nullptr;
  void* at = mmap(place, size, PROT_READ | PROT_WRITE, flags | (place != nullptr ? MAP_FIXED : 0), fd, 0);
  if (at == MAP_FAILED) {
    const int error = errno;
    if (place != nullptr) munmap(place, size);
    errno = error;
    return nullptr;
  }
  if (mapped >= kHugePage) madvise(at, size, MADV_HUGEPAGE);  // advice: without it pages are small
  return at;
}

int64_t mapped_bytes(int64_t bytes) { return rounded_up(bytes, bytes >= kHugePage ? kHugePage : kSmallPage); }

}  // namespace

CpuDevice::CpuDevice(const DeviceOptions& options)
    : num_threads_(options.num_threads), ops_(std::make_unique<CpuOps>(*this, options)) {}

CpuDevice::~CpuDevice() { ops_.reset(); }

Buffer CpuDevice::allocate(int64_t bytes, const std::string& tag) {
  check(bytes > 0, "allocate '", tag, "': bytes must be positive, got ", bytes);
  const int64_t mapped = mapped_bytes(bytes);
  void* const at = map_pages(mapped, -1);
  if (at == nullptr)
    throw Unavailable(concat("cannot allocate ", bytes, " bytes for '", tag, "': ", std::strerror(errno), "; ",
                             describe_allocations()));
  return track(at, bytes, mapped, -1, tag);
}

Buffer CpuDevice::allocate_shareable(int64_t bytes, const std::string& tag) {
  check(bytes > 0, "allocate_shareable '", tag, "': bytes must be positive, got ", bytes);
  const int64_t mapped = mapped_bytes(bytes);
  const int fd = memfd_create(("rtp_llm " + tag).substr(0, 200).c_str(), MFD_CLOEXEC);
  void* at = nullptr;
  if (fd >= 0 && ftruncate(fd, mapped) == 0) at = map_pages(mapped, fd);
  if (at == nullptr) {
    const int error = errno;
    if (fd >= 0) close(fd);
    throw Unavailable(concat("cannot allocate ", bytes, " shareable bytes for '", tag, "': ", std::strerror(error),
                             "; ", describe_allocations()));
  }
  return track(at, bytes, mapped, fd, tag);
}

Buffer CpuDevice::track(void* data, int64_t bytes, int64_t mapped, int fd, const std::string& tag) {
  const auto address = reinterpret_cast<uint64_t>(data);
  {
    const std::lock_guard lock(mutex_);
    allocations_.push_back({address, bytes, tag});
  }
  return Buffer(data, bytes, fd, [this, data, address, mapped, fd] {
    munmap(data, static_cast<size_t>(mapped));
    if (fd >= 0) close(fd);
    const std::lock_guard lock(mutex_);
    std::erase_if(allocations_, [&](const Allocation& one) { return one.address == address; });
  });
}

std::vector<Allocation> CpuDevice::allocations() const {
  const std::lock_guard lock(mutex_);
  return allocations_;
}

std::string CpuDevice::describe_allocations() const {
  int64_t total = 0;
  std::string largest = "nothing";
  int64_t largest_bytes = 0;
  const std::vector<Allocation> all = allocations();
  for (const Allocation& one : all) {
    total += one.bytes;
    if (one.bytes > largest_bytes) {
      largest_bytes = one.bytes;
      largest = concat("'", one.tag, "' (", one.bytes, " bytes)");
    }
  }
  return concat(total, " bytes in ", all.size(), " allocations already, the largest is ", largest);
}

void CpuDevice::copy(void* to, const void* from, int64_t bytes) { std::memmove(to, from, static_cast<size_t>(bytes)); }

double CpuDevice::read_rate(int64_t bytes, int rounds) { return memory_read_rate(bytes, num_threads_, rounds); }

void CpuDevice::zero(void* at, int64_t bytes) { std::memset(at, 0, static_cast<size_t>(bytes)); }

StreamEvent CpuDevice::record() {
  event_times_[++num_events_ % kTimedEvents] = Clock::now();
  return {num_events_};
}

double CpuDevice::seconds_between(StreamEvent begin, StreamEvent end) {
  for (const StreamEvent event : {begin, end})
    check(event.number > 0 && event.number <= num_events_ && num_events_ - event.number < kTimedEvents, "event ",
          event.number, " has no time, there are ", num_events_, " and the last ", kTimedEvents, " have one");
  const std::chrono::duration<double> between =
      event_times_[end.number % kTimedEvents] - event_times_[begin.number % kTimedEvents];
  return between.count();
}

}  // namespace rtp_llm::cpu

extern "C" rtp_llm::Device* rtp_device_create(const rtp_llm::DeviceOptions* options) {
  return new rtp_llm::cpu::CpuDevice(*options);
}
