// The kernels of any program with their times, by CUPTI:
//
//   g++ -std=c++20 -O2 -shared -fPIC benchmarks/cuda/kernel_trace.cc -I$CUDA/include -L$CUDA/lib64 -lcupti
//       -o libkernel_trace.so
//   KERNEL_TRACE=trace.txt CUDA_INJECTION64_PATH=./libkernel_trace.so build/gpu/benchmarks/engine cuda qwen3-8b
//   python benchmarks/cuda/kernel_trace.py trace.txt
//
// A line a kernel: begin and end in ns, mangled name. Kernels run as they would without it, graphs and overlap
// included; a decode step takes some 10 us more.
#include <cupti.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

namespace {

struct Kernel {
  uint64_t begin, end;
  std::string name;
};

std::mutex mutex;
std::vector<Kernel> kernels;

void lend_buffer(uint8_t** buffer, size_t* bytes, size_t* max_records) {
  *bytes = 16 << 20;
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(8, *bytes));
  *max_records = 0;
}

void take_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
  std::lock_guard lock(mutex);
  CUpti_Activity* record = nullptr;
  while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
    if (record->kind != CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) continue;
    const auto* kernel = reinterpret_cast<const CUpti_ActivityKernel9*>(record);
    kernels.push_back({kernel->start, kernel->end, kernel->name == nullptr ? "?" : kernel->name});
  }
  std::free(buffer);
}

void write() {
  cuptiActivityFlushAll(1);
  std::FILE* file = std::fopen(std::getenv("KERNEL_TRACE"), "w");
  if (file == nullptr) return std::perror("KERNEL_TRACE");
  for (const Kernel& kernel : kernels)
    std::fprintf(file, "%lu %lu %s\n", static_cast<unsigned long>(kernel.begin), static_cast<unsigned long>(kernel.end),
                 kernel.name.c_str());
  std::fclose(file);
}

}  // namespace

extern "C" int InitializeInjection() {
  if (std::getenv("KERNEL_TRACE") == nullptr) return 1;
  cuptiActivityRegisterCallbacks(lend_buffer, take_buffer);
  if (const CUptiResult result = cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL); result != CUPTI_SUCCESS)
    std::fprintf(stderr, "kernel_trace: CUPTI answers %d\n", static_cast<int>(result));
  std::atexit(write);
  return 1;
}
