#include "device/cuda/cuda_device.h"

#include <algorithm>

#include "device/cuda/cuda_check.h"
#include "device/cuda/cuda_ops.h"

namespace rtp_llm::cuda {
namespace {

GpuProperties properties_of(int index) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess)
    throw Unavailable(concat("backend 'cuda': ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")"));
  if (index < 0 || index >= count)
    throw Unavailable(concat("backend 'cuda': GPU ", index, " is not there, this machine has ", count));
  cudaDeviceProp found{};
  cuda_check(cudaGetDeviceProperties(&found, index), "cudaGetDeviceProperties");
  return {.name = found.name,
          .index = index,
          .major = found.major,
          .minor = found.minor,
          .num_sms = found.multiProcessorCount,
          .max_shared_bytes = static_cast<int>(found.sharedMemPerBlockOptin)};
}

}  // namespace

CudaDevice::CudaDevice(const DeviceOptions& options) : properties_(properties_of(options.device_index)) {
  bind_thread();
  cuda_check(cudaStreamCreateWithFlags(&compute_, cudaStreamNonBlocking), "cudaStreamCreate");
  cuda_check(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), "cudaStreamCreate");
  cuda_check(cudaStreamCreateWithFlags(&ahead_, cudaStreamNonBlocking), "cudaStreamCreate");
  cuda_check(cudaEventCreateWithFlags(&copied_ahead_, cudaEventDisableTiming), "cudaEventCreate");
  events_.resize(kTimedEvents);
  for (cudaEvent_t& event : events_) cuda_check(cudaEventCreate(&event), "cudaEventCreate");
  ops_ = std::make_unique<CudaOps>(*this, checked_tree_leaves(options, kTreeLeaves));
}

CudaDevice::~CudaDevice() {
  ops_.reset();
  for (const auto& [key, graph] : graphs_) cudaGraphExecDestroy(graph);
  for (cudaEvent_t event : events_) cudaEventDestroy(event);
  cudaEventDestroy(copied_ahead_);
  cudaStreamDestroy(ahead_);
  cudaStreamDestroy(copies_);
  cudaStreamDestroy(compute_);
}

std::string CudaDevice::isa() const { return concat("sm", properties_.major, properties_.minor); }

Ops& CudaDevice::ops() { return *ops_; }

void CudaDevice::bind_thread() const {
  thread_local int bound = -1;
  if (bound == properties_.index) return;
  cuda_check(cudaSetDevice(properties_.index), "cudaSetDevice");
  bound = properties_.index;
}

// ---- Memory

Buffer CudaDevice::allocate(int64_t bytes, const std::string& tag) {
  check(bytes > 0, "allocate '", tag, "': bytes must be positive, got ", bytes);
  bind_thread();
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, static_cast<size_t>(bytes));
  if (status != cudaSuccess) {
    cudaGetLastError();  // an allocation that fails leaves its error behind
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    throw Unavailable(concat("cannot allocate ", bytes, " bytes for '", tag, "': ", cudaGetErrorString(status), "; ",
                             free, " of ", total, " bytes are free; ", describe_allocations()));
  }
  zero(data, bytes);
  return track(data, bytes, tag, [](void* at) { return cudaFree(at); });
}

Buffer CudaDevice::allocate_shareable(int64_t bytes, const std::string& tag) { return allocate(bytes, tag); }

Buffer CudaDevice::allocate_pinned(int64_t bytes, const std::string& tag) {
  check(bytes > 0, "allocate_pinned '", tag, "': bytes must be positive, got ", bytes);
  bind_thread();
  void* data = nullptr;
  const cudaError_t status = cudaHostAlloc(&data, static_cast<size_t>(bytes), cudaHostAllocPortable);
  if (status != cudaSuccess) {
    cudaGetLastError();
    throw Unavailable(concat("cannot pin ", bytes, " bytes of host memory for '", tag,
                             "': ", cudaGetErrorString(status), "; ", describe_allocations()));
  }
  std::fill_n(static_cast<uint8_t*>(data), bytes, uint8_t{0});
  return track(data, bytes, tag, [](void* at) { return cudaFreeHost(at); });
}

Buffer CudaDevice::track(void* data, int64_t bytes, const std::string& tag, cudaError_t (*free)(void*)) {
  {
    const std::lock_guard lock(mutex_);
    allocations_.push_back({reinterpret_cast<uint64_t>(data), bytes, tag});
  }
  return Buffer(data, bytes, -1, [this, data, free] {
    bind_thread();
    free(data);  // waits for what runs on the GPU
    const std::lock_guard lock(mutex_);
    std::erase_if(allocations_, [&](const Allocation& one) { return one.address == reinterpret_cast<uint64_t>(data); });
  });
}

std::vector<Allocation> CudaDevice::allocations() const {
  const std::lock_guard lock(mutex_);
  return allocations_;
}

std::optional<DeviceMemory> CudaDevice::memory() const {
  bind_thread();
  size_t free = 0, total = 0;
  cuda_check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return DeviceMemory{.free = static_cast<int64_t>(free), .total = static_cast<int64_t>(total)};
}

std::string CudaDevice::describe_allocations() const {
  const std::vector<Allocation> all = allocations();
  int64_t total = 0;
  const Allocation* largest = nullptr;
  for (const Allocation& one : all) {
    total += one.bytes;
    if (largest == nullptr || one.bytes > largest->bytes) largest = &one;
  }
  return concat(total, " bytes in ", all.size(), " allocations already, the largest is ",
                largest == nullptr ? "nothing" : concat("'", largest->tag, "' (", largest->bytes, " bytes)"));
}

void CudaDevice::copy(void* to, const void* from, int64_t bytes) {
  bind_thread();
  cuda_check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, copies_), "copy");
  cuda_check(cudaStreamSynchronize(copies_), "copy");
}

void CudaDevice::zero(void* at, int64_t bytes) {
  bind_thread();
  cuda_check(cudaMemsetAsync(at, 0, static_cast<size_t>(bytes), copies_), "zero");
  cuda_check(cudaStreamSynchronize(copies_), "zero");
}

// ---- The main stream

void CudaDevice::copy_async(void* to, const void* from, int64_t bytes) {
  bind_thread();
  cuda_check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, compute_), "copy_async");
}

void CudaDevice::copy_ahead(void* to, const void* from, int64_t bytes) {
  bind_thread();
  cuda_check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, ahead_), "copy_ahead");
  cuda_check(cudaEventRecord(copied_ahead_, ahead_), "copy_ahead");
  cuda_check(cudaStreamWaitEvent(compute_, copied_ahead_, 0), "copy_ahead");
}

StreamEvent CudaDevice::record() {
  bind_thread();
  const uint64_t number = last_recorded_.load(std::memory_order_relaxed) + 1;
  cuda_check(cudaEventRecord(event_of(number), compute_), "record");
  last_recorded_.store(number, std::memory_order_release);
  return {number};
}

// A number that is further back than the ring asks for the later event that took its place: done says that both are.
bool CudaDevice::done(StreamEvent event) {
  if (event.number <= last_done_.load(std::memory_order_acquire)) return true;
  bind_thread();
  const cudaError_t status = cudaEventQuery(event_of(event.number));
  if (status == cudaErrorNotReady) return false;
  cuda_check(status, "work on the GPU");
  uint64_t known = last_done_.load(std::memory_order_relaxed);
  while (known < event.number && !last_done_.compare_exchange_weak(known, event.number, std::memory_order_release)) {
  }
  return true;
}

void CudaDevice::wait(StreamEvent event) {
  if (done(event)) return;
  cuda_check(cudaEventSynchronize(event_of(event.number)), "work on the GPU");
  done(event);
}

double CudaDevice::seconds_between(StreamEvent begin, StreamEvent end) {
  if (begin.number == 0 || end.number == 0) return 0.0;
  bind_thread();
  float milliseconds = 0.0f;
  cuda_check(cudaEventElapsedTime(&milliseconds, event_of(begin.number), event_of(end.number)), "seconds_between");
  return static_cast<double>(milliseconds) * 1e-3;
}

// Captured in the calling thread's mode: other threads may allocate meanwhile.
void CudaDevice::replay(uint64_t key, const std::function<void()>& launch) {
  bind_thread();
  cudaGraphExec_t& graph = graphs_[key];
  if (graph == nullptr) {
    cudaGraph_t recorded = nullptr;
    cuda_check(cudaStreamBeginCapture(compute_, cudaStreamCaptureModeThreadLocal), "capture");
    try {
      launch();
    } catch (...) {
      cudaStreamEndCapture(compute_, &recorded);
      if (recorded != nullptr) cudaGraphDestroy(recorded);
      cudaGetLastError();
      throw;
    }
    cuda_check(cudaStreamEndCapture(compute_, &recorded), "capture");
    const cudaError_t status = cudaGraphInstantiate(&graph, recorded, 0);
    cudaGraphDestroy(recorded);
    cuda_check(status, "cudaGraphInstantiate");
    cuda_check(cudaGraphUpload(graph, compute_), "cudaGraphUpload");
  }
  cuda_check(cudaGraphLaunch(graph, compute_), "cudaGraphLaunch");
}

void CudaDevice::synchronize() {
  bind_thread();
  cuda_check(cudaStreamSynchronize(compute_), "work on the GPU");
}

}  // namespace rtp_llm::cuda

extern "C" rtp_llm::Device* rtp_device_create(const rtp_llm::DeviceOptions* options) {
  return new rtp_llm::cuda::CudaDevice(*options);
}
