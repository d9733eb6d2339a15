// step_calls_test [BATCH ...]: what the engine thread calls in 1,000 decode steps of a model of Qwen3-8B's shape, and
// how long the GPU has nothing to do meanwhile.
//
// Fails if the thread allocates (host memory, pinned memory or the GPU's), waits more than once a step or for anything
// but an event, or if the GPU is idle for more than 2% of the time: between the end of a step's graph and the begin of
// the next one's, by events around each. The backend's calls of the runtime are linked to those below (RtpTests.cmake
// names them to the linker).
#include <cuda_runtime.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "../cpp/engine/step_calls.h"
#include "model/weights.h"

extern "C" rtp_llm::Device* rtp_device_create(const rtp_llm::DeviceOptions* options);

namespace rtp_llm::testing {
namespace {

// Events around the graphs that a watched thread launches.
struct Marks {
  std::vector<cudaEvent_t> events;  // before, after, before, …
  size_t used = 0;

  void reserve(size_t steps) {
    while (events.size() < 2 * steps) cudaEventCreate(&events.emplace_back());
    used = 0;
  }
  bool full() const { return used + 2 > events.size(); }
  // Part of the time from the first mark to the last in which no graph ran.
  double idle() const {
    float gaps = 0, all = 0;
    for (size_t i = 1; i + 1 < used; i += 2) {
      float gap = 0;
      check(cudaEventElapsedTime(&gap, events[i], events[i + 1]) == cudaSuccess, "a mark is not there");
      gaps += gap;
    }
    check(used > 2 && cudaEventElapsedTime(&all, events[0], events[used - 1]) == cudaSuccess, "no marks are there");
    return gaps / all;
  }
} marks;

// A call of the runtime by the thread that runs here.
class RuntimeCall {
 public:
  explicit RuntimeCall(std::atomic<int64_t>* counter = nullptr) {
    ++in_driver;
    if (watched && counter != nullptr) ++*counter;
  }
  ~RuntimeCall() { --in_driver; }
};

ModelConfig model_shape() {
  return {.architecture = "Qwen3ForCausalLM",
          .vocab_size = 151936,
          .hidden_size = 4096,
          .intermediate_size = 12288,
          .num_hidden_layers = 36,
          .num_attention_heads = 32,
          .num_key_value_heads = 8,
          .head_dim = 128,
          .qk_norm = true,
          .max_position_embeddings = 4096,
          .dtype = DType::kBF16};
}

// The same small numbers again and again: what is computed doesn't matter.
void write_weights(Weights& weights) {
  constexpr int64_t kPool = int64_t{8} << 20;
  std::vector<BFloat16> pool(kPool);
  for (size_t i = 0; i < pool.size(); ++i)
    pool[i] = to_bf16(0.01f * (static_cast<float>(i * 2654435761u >> 20 & 255) / 128 - 1));
  for (const ExpectedTensor& tensor : weights.expected()) {
    const int64_t rows = tensor.shape[0], width = tensor.shape.size() == 1 ? 1 : tensor.shape[1];
    for (int64_t row = 0; row < rows; row += kPool / width)
      weights.write(tensor.name, row, std::min(kPool / width, rows - row), width, DType::kBF16, pool.data());
  }
  weights.finish();
}

int run(const std::vector<int>& batches) {
  constexpr int kPrompt = 256, kSteps = 1000;
  constexpr double kMostIdle = 0.02;
  Dl_info info{};
  check(dladdr(reinterpret_cast<void*>(&supported_isas), &info) != 0, "librtp_core.so not found");
  const DeviceOptions options;
  const std::unique_ptr<Device> device(rtp_device_create(&options));
  Weights weights(*device, model_shape());
  write_weights(weights);
  Decoder decoder(*device, weights);
  const int most = *std::ranges::max_element(batches);
  EngineConfig config{.max_num_batched_tokens = 8192,
                      .max_num_seqs = most,
                      .max_model_len = 2304,
                      .block_tokens = 64,
                      .kv_dtype = DType::kBF16};
  config.num_kv_blocks = most * 40;
  WatchedDecode decode(*device, decoder, config);
  bool good = true;
  for (int batch : batches) {
    calls.reset();
    marks.reserve(kSteps);
    decode.run(batch, kPrompt, kSteps);
    device->synchronize();
    const double idle = marks.idle();
    std::printf("{\"batch\": %d, \"graphs\": %zu, \"idle\": %.4f}\n", batch, marks.used / 2, idle);
    good &= judge(kSteps) && marks.full() && (batch < 8 || idle <= kMostIdle);
  }
  return good ? 0 : 1;
}

}  // namespace
}  // namespace rtp_llm::testing

// ---- The runtime's calls: __real_ is the runtime's own

using rtp_llm::testing::calls;
using rtp_llm::testing::marks;
using rtp_llm::testing::RuntimeCall;

#define RTP_COUNTED(name, counter, parameters, arguments) \
  cudaError_t __real_##name parameters;                   \
  cudaError_t __wrap_##name parameters {                  \
    const RuntimeCall call(counter);                      \
    return __real_##name arguments;                       \
  }

extern "C" {
RTP_COUNTED(cudaMalloc, &calls.device_allocations, (void** at, size_t bytes), (at, bytes))
RTP_COUNTED(cudaHostAlloc, &calls.device_allocations, (void** at, size_t bytes, unsigned flags), (at, bytes, flags))
RTP_COUNTED(cudaFree, &calls.device_allocations, (void* at), (at))
RTP_COUNTED(cudaFreeHost, &calls.device_allocations, (void* at), (at))
RTP_COUNTED(cudaEventSynchronize, &calls.waits, (cudaEvent_t event), (event))
RTP_COUNTED(cudaStreamSynchronize, &calls.synchronizations, (cudaStream_t stream), (stream))
RTP_COUNTED(cudaEventQuery, nullptr, (cudaEvent_t event), (event))
RTP_COUNTED(cudaEventRecord, nullptr, (cudaEvent_t event, cudaStream_t stream), (event, stream))
RTP_COUNTED(cudaEventElapsedTime, nullptr, (float* ms, cudaEvent_t begin, cudaEvent_t end), (ms, begin, end))
RTP_COUNTED(cudaStreamWaitEvent, nullptr, (cudaStream_t stream, cudaEvent_t event, unsigned flags),
            (stream, event, flags))
RTP_COUNTED(cudaMemsetAsync, nullptr, (void* at, int value, size_t bytes, cudaStream_t stream),
            (at, value, bytes, stream))
RTP_COUNTED(cudaMemcpyAsync, nullptr,
            (void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream),
            (to, from, bytes, kind, stream))
RTP_COUNTED(cudaLaunchKernelExC, nullptr, (const cudaLaunchConfig_t* config, const void* kernel, void** args),
            (config, kernel, args))

cudaError_t __real_cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t __wrap_cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  const RuntimeCall call;
  const bool marked = rtp_llm::testing::watched && !marks.full();
  if (marked) __real_cudaEventRecord(marks.events[marks.used++], stream);
  const cudaError_t status = __real_cudaGraphLaunch(graph, stream);
  if (marked) __real_cudaEventRecord(marks.events[marks.used++], stream);
  return status;
}
}

int main(int argc, char** argv) {
  try {
    std::vector<int> batches;
    for (int i = 1; i < argc; ++i) batches.push_back(std::atoi(argv[i]));
    if (batches.empty()) batches = {8};
    return rtp_llm::testing::run(batches);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
