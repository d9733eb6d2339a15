// What the engine thread calls in decode steps: this program's malloc counts the calls of a thread that is watched.
//
// To be included by one file of a program that links no other malloc (a sanitizer's, say).
#pragma once

#include <dlfcn.h>
#include <execinfo.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <string>

#include "device/device.h"
#include "engine/engine.h"

namespace rtp_llm::testing {

inline thread_local bool watched = false;  // the calling thread's calls count
inline thread_local int in_driver = 0;     // it is in a call of the GPU's runtime

struct StepCalls {
  std::atomic<int64_t> allocations{0};         // malloc and its kind
  std::atomic<int64_t> driver_allocations{0};  // the same, within calls of the GPU's runtime
  std::atomic<int64_t> device_allocations{0};  // memory of the GPU and pinned memory, taken and given back
  std::atomic<int64_t> waits{0};               // for an event
  std::atomic<int64_t> synchronizations{0};    // waits for anything else

  void reset() { allocations = driver_allocations = device_allocations = waits = synchronizations = 0; }
};
inline StepCalls calls;

// Where the first allocation came from.
inline void* first_allocation[24];
inline int first_allocation_depth = 0;

inline void count_allocation() {
  if (!watched) return;
  watched = false;  // what counts may allocate itself
  if (in_driver > 0) {
    ++calls.driver_allocations;
  } else if (calls.allocations++ == 0) {
    first_allocation_depth = backtrace(first_allocation, 24);
  }
  watched = true;
}

// An engine that decodes `batch` sequences, watched for `steps` steps in which each of them gets a token. What it says
// is taken on its own thread, so that nothing depends on how fast another one is.
class WatchedDecode {
 public:
  WatchedDecode(Device& device, Decoder& decoder, const EngineConfig& config) : engine_(device, decoder, config) {
    engine_.set_output_notify([this] { published(); });
    engine_.start();
  }
  ~WatchedDecode() { engine_.stop(); }

  // Returns when all sequences have ended: twice, since in the first round buffers grow to their working size.
  void run(int batch, int prompt, int steps) {
    decode(batch, prompt, steps, false);
    decode(batch, prompt, steps, true);
  }

 private:
  static constexpr int kTail = 64;  // tokens of a sequence beside the steps that are watched

  void decode(int batch, int prompt, int steps, bool watch) {
    std::unique_lock lock(mutex_);  // until all are there, the engine thread stops behind its first step
    batch_ = batch, full_ = finished_ = 0;
    first_ = watch ? kTail / 2 : steps + kTail, last_ = kTail / 2 + steps;
    for (int i = 0; i < batch; ++i) {
      SequenceSpec spec{.key = {.router_epoch = 1, .request = ++last_request_}};
      spec.sampling.max_tokens = steps + kTail;
      spec.sampling.ignore_eos = true;
      spec.sampling.seed = last_request_;
      for (int token = 0; token < prompt; ++token)
        spec.prompt.push_back(static_cast<int32_t>((token * 7 + last_request_ * 13) % 97));
      engine_.add(std::move(spec), Role::kAlone);
    }
    changed_.wait(lock, [&] { return finished_ == batch_ || engine_.failure().has_value(); });
    if (const auto failure = engine_.failure()) throw Error("engine failed: " + *failure);
    check(full_ > last_, full_, " steps had a token of each sequence, more than ", last_, " are needed");
  }

  // On the engine thread, after each step.
  void published() {
    watched = false;
    {
      const std::lock_guard lock(mutex_);
      const TokenColumns columns = engine_.take_outputs();
      full_ += static_cast<int>(columns.key.size()) == batch_;
      for (FinishReason finish : columns.finish) finished_ += finish != FinishReason::kNone;
    }
    changed_.notify_one();
    watched = full_ >= first_ && full_ < last_;
  }

  std::mutex mutex_;  // guards what follows; the engine thread alone writes full_ and finished_ while it runs
  std::condition_variable changed_;
  int batch_ = 0, full_ = 0, finished_ = 0;  // full_: steps with a token of each sequence
  int first_ = 0, last_ = 0;                 // of them are watched: [first_, last_)
  uint64_t last_request_ = 0;
  Engine engine_;
};

// Says what was counted; whether nothing was that mustn't be.
inline bool judge(int steps) {
  std::printf(
      "{\"steps\": %d, \"allocations\": %ld, \"allocations_in_driver\": %ld, \"device_allocations\": %ld, "
      "\"event_waits\": %ld, \"other_waits\": %ld}\n",
      steps, calls.allocations.load(), calls.driver_allocations.load(), calls.device_allocations.load(),
      calls.waits.load(), calls.synchronizations.load());
  std::fflush(stdout);
  if (first_allocation_depth > 0) {
    std::fprintf(stderr, "the first allocation:\n");
    backtrace_symbols_fd(first_allocation, first_allocation_depth, STDERR_FILENO);
  }
  return calls.allocations == 0 && calls.device_allocations == 0 && calls.waits <= steps && calls.synchronizations == 0;
}

}  // namespace rtp_llm::testing

// ---- malloc and its kind, in glibc's stead

extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* at, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);

void* malloc(size_t bytes) noexcept {
  rtp_llm::testing::count_allocation();
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) noexcept {
  rtp_llm::testing::count_allocation();
  return __libc_calloc(count, bytes);
}
void* realloc(void* at, size_t bytes) noexcept {
  rtp_llm::testing::count_allocation();
  return __libc_realloc(at, bytes);
}
void* memalign(size_t alignment, size_t bytes) noexcept {
  rtp_llm::testing::count_allocation();
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) noexcept { return memalign(alignment, bytes); }
int posix_memalign(void** at, size_t alignment, size_t bytes) noexcept {
  *at = memalign(alignment, bytes);
  return *at == nullptr ? ENOMEM : 0;
}
}
