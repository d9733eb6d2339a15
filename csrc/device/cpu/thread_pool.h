// ThreadPool: runs the chunks of one op on the caller's thread and on num_threads - 1 others.
//
// Chunks are claimed one by one from a counter, so a thread that loses its core costs one chunk, not
// a static half. An op is complete when its chunks are done, not when threads arrive: a thread that
// comes late finds nothing to claim. Idle threads spin for a few microseconds, then wait on a futex;
// only a thread that has noted that it waits is woken.
//
// Thread rule: `run` is called by one thread at a time (the engine's). Chunks must not throw.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace rtp_llm::cpu {

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // body(chunk, thread) for each chunk in [0, num_chunks), thread in [0, num_threads); the caller is
  // thread 0. Chunks are claimed in ascending order. Returns when all are done.
  template <class Body>
  void run(int64_t num_chunks, Body&& body) {
    if (num_chunks <= 0) return;
    if (num_threads_ == 1 || num_chunks == 1) {
      for (int64_t i = 0; i < num_chunks; ++i) body(i, 0);
      return;
    }
    run_shared(
        num_chunks,
        [](void* context, int64_t chunk, int thread) {
          (*static_cast<std::remove_reference_t<Body>*>(context))(chunk, thread);
        },
        &body);
  }

 private:
  using Call = void (*)(void* context, int64_t chunk, int thread);

  void run_shared(int64_t num_chunks, Call call, void* context);
  bool claim_one(int thread);
  void work(int thread);
  void wait_for_op(uint32_t seen_op);

  const int num_threads_;

  // The published op. Its fields change only while nothing is left to claim (the low half of
  // `ticket_` is 0), so a successful claim proves that they were read whole.
  std::atomic<Call> call_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int64_t> num_chunks_{0};

  alignas(64) std::atomic<uint64_t> ticket_{0};   // op number << 32 | chunks left to claim
  alignas(64) std::atomic<uint32_t> pending_{0};  // chunks not done; futex of the caller
  std::atomic<bool> caller_waits_{false};
  alignas(64) std::atomic<uint32_t> op_{0};  // op number; futex of idle threads
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};

  std::vector<std::thread> threads_;
};

}  // namespace rtp_llm::cpu
