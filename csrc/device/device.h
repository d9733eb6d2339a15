// Device: memory and ops of one accelerator or of the CPU.
//
// Every allocation is tagged and listed. The KV pool and staging rings are allocations of their own
// (`shareable`: CPU memfd, CUDA one cudaMalloc), so that a peer can map them and nothing else.
//
// A device has one main stream: ops, copy_async and record() are queued on it and run in the order of the calls. On a
// device that runs behind the host (runs_behind) these calls return before the work is done, and a StreamEvent says
// when it is; elsewhere each is done when it returns and every event is done at once.
//
// Owner: the engine owns its Device; Buffers must die before it. Thread rule: allocation is thread-safe and happens at
// start-up only; ops, copy_async, record, wait, seconds_between and synchronize are called from one thread at a time
// (the engine's); done, copy and zero from any.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace rtp_llm {

class Ops;

// One allocation, RAII: freed when destroyed. Zero-filled at allocation.
class Buffer {
 public:
  Buffer() = default;
  Buffer(void* data, int64_t bytes, int shared_fd, std::function<void()> free)
      : data_(data), bytes_(bytes), shared_fd_(shared_fd), free_(std::move(free)) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~Buffer() {
    if (free_) free_();
  }

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  int shared_fd() const { return shared_fd_; }  // -1 unless allocated shareable on a device with file handles

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(shared_fd_, other.shared_fd_);
    std::swap(free_, other.free_);
  }

  void* data_ = nullptr;
  int64_t bytes_ = 0;
  int shared_fd_ = -1;
  std::function<void()> free_;
};

struct Allocation {
  uint64_t address;
  int64_t bytes;
  std::string tag;
};

struct DeviceOptions {
  int num_threads = 1;   // CPU: threads that an op may use, the caller's included
  std::string isa;       // CPU: "" picks the best this machine runs; else force one level by name
  int device_index = 0;  // accelerators
  // Leaves of the binary tree that o and down are summed as over K (LinearSpec::row_parallel): 1, 2 or 4; 1 is one
  // chain. 0: the backend's own number.
  int tree_leaves = 0;
  bool queued = false;  // CPU: run behind the host, as an accelerator does (device/queued_device.h). For tests
  uint64_t queue_delay_seed = 0;  // of a queued one: not 0 delays its work now and then
};

// options.tree_leaves, or the backend's own number. Throws InvalidArgument.
int checked_tree_leaves(const DeviceOptions& options, int of_the_backend);

// A point of the main stream. A plain number: nothing is owned, and it may outlive the work and the device. Number 0,
// before everything, is always done.
struct StreamEvent {
  uint64_t number = 0;
};

// Bytes of an accelerator's own memory.
struct DeviceMemory {
  int64_t free = 0;
  int64_t total = 0;
};

class Device {
 public:
  virtual ~Device() = default;

  virtual std::string backend() const = 0;  // "cpu", "cuda"
  virtual std::string isa() const = 0;      // "generic", "avx2", "avx512bf16", "amxbf16"; "sm90"
  virtual Ops& ops() = 0;
  // Whether launched work runs behind the host, so that a step may be launched before the one before it has ended.
  virtual bool runs_behind() const = 0;
  // Whether the host reads and writes this device's memory by its addresses, so that UCX does too.
  virtual bool host_reaches_memory() const = 0;

  // Throws Unavailable with the bytes, the tag and what is allocated already.
  virtual Buffer allocate(int64_t bytes, const std::string& tag) = 0;
  virtual Buffer allocate_shareable(int64_t bytes, const std::string& tag) = 0;
  // Host memory that copy_async reaches and that ops may write to; on the CPU ordinary memory.
  virtual Buffer allocate_pinned(int64_t bytes, const std::string& tag) = 0;
  virtual std::vector<Allocation> allocations() const = 0;
  // What this device has for itself; nothing where it shares the host's memory.
  virtual std::optional<DeviceMemory> memory() const { return std::nullopt; }

  // Host <-> device and device <-> device: at once, whatever is launched, and done on return. For start-up, tests and
  // other threads' memory. REQUIRES: no launched work that isn't done touches the memory (else synchronize() first).
  virtual void copy(void* to, const void* from, int64_t bytes) = 0;
  virtual void zero(void* at, int64_t bytes) = 0;

  // On the main stream. One side is device memory, the other was allocated by allocate_pinned (or is device memory);
  // the source stays unchanged until the copy is done.
  virtual void copy_async(void* to, const void* from, int64_t bytes) = 0;
  // The same beside what is launched already, which it need not wait for; what is launched from now on comes after it.
  // REQUIRES: no launched work that isn't done touches `to`.
  virtual void copy_ahead(void* to, const void* from, int64_t bytes) { copy_async(to, from, bytes); }
  // After everything launched so far. Allocates nothing.
  virtual StreamEvent record() = 0;
  // Whether all before the event is done, and visible to this thread. That one event is done says that all recorded
  // before it are. Throws what launched work has thrown.
  virtual bool done(StreamEvent event) = 0;
  // Blocks until done(event).
  virtual void wait(StreamEvent event) = 0;
  // Time between two events that are done, by the device's clock. REQUIRES: both are among the last kTimedEvents.
  static constexpr int kTimedEvents = 1024;
  virtual double seconds_between(StreamEvent begin, StreamEvent end) = 0;
  // Returns when all launched work has ended.
  virtual void synchronize() = 0;

  // Whether replay() is worth its padding: launches cost the host more than a replayed graph.
  virtual bool has_graphs() const { return false; }
  // Queues on the main stream what `launch` queues there. A device with graphs records it the first time that it sees
  // the key, and replays the record from then on. REQUIRES: for one key always the same work on the same addresses;
  // no record() or copy() within.
  virtual void replay(uint64_t key, const std::function<void()>& launch) {
    (void)key;
    launch();
  }

  // Bytes a second that this device reads from `bytes` of its memory, the best of `rounds`: what decode is measured
  // against. Choose `bytes` well above its caches.
  virtual double read_rate(int64_t bytes, int rounds) = 0;
};

// Opens the backend's shared object (librtp_cpu_<isa>.so, librtp_cuda.so) from `library_dir`.
// Environment: RTP_LLM_ISA overrides options.isa; RTP_LLM_QUEUED_DEVICE=<number> queues the CPU, the number being its
// delay seed. Throws Unavailable naming backend, ISA and what this machine has.
std::unique_ptr<Device> open_device(const std::string& backend, const DeviceOptions& options,
                                    const std::string& library_dir);

// ISA levels of this machine, best first. Asks the kernel for AMX's registers, for the whole process, if the CPU has
// them.
std::vector<std::string> supported_isas();

// The one symbol that a backend's shared object exports.
extern "C" using DeviceFactory = Device * (*)(const DeviceOptions*);
inline constexpr const char* kDeviceFactoryName = "rtp_device_create";

}  // namespace rtp_llm
