#include "device/cpu/thread_pool.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>

#include "tensor/check.h"

namespace rtp_llm::cpu {
namespace {

constexpr int kSpins = 200;  // about 5 to 10 microseconds of pauses

void pause_once() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

// Returns at once if the word has changed; may return early: callers loop.
void futex_wait(std::atomic<uint32_t>& word, uint32_t expected) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>& word, int threads) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, threads, nullptr, nullptr, 0);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads) {
  check(num_threads >= 1 && num_threads <= 1024, "num_threads must be 1..1024, got ", num_threads);
  for (int thread = 1; thread < num_threads; ++thread) threads_.emplace_back([this, thread] { work(thread); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  op_.fetch_add(1);
  futex_wake(op_, INT_MAX);
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run_shared(int64_t num_chunks, Call call, void* context) {
  check(num_chunks < (int64_t{1} << 31), "an op has at most 2^31 chunks, got ", num_chunks);
  call_.store(call, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  num_chunks_.store(num_chunks, std::memory_order_relaxed);
  pending_.store(static_cast<uint32_t>(num_chunks), std::memory_order_relaxed);
  const uint32_t op = op_.load(std::memory_order_relaxed) + 1;
  ticket_.store(uint64_t{op} << 32 | static_cast<uint64_t>(num_chunks), std::memory_order_release);
  op_.store(op);  // sequentially consistent, as is sleepers_: either we see a sleeper or it sees the op
  if (sleepers_.load() > 0) futex_wake(op_, INT_MAX);

  while (claim_one(0)) {
  }
  for (int spin = 0; spin < kSpins; ++spin) {
    if (pending_.load(std::memory_order_acquire) == 0) return;
    pause_once();
  }
  caller_waits_.store(true);
  for (uint32_t left = pending_.load(); left != 0; left = pending_.load()) futex_wait(pending_, left);
  caller_waits_.store(false, std::memory_order_relaxed);
}

// Claims and runs one chunk of the published op; false if none is left.
bool ThreadPool::claim_one(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  for (;;) {
    const auto left = static_cast<int64_t>(ticket & 0xffffffffu);
    if (left == 0) return false;
    const Call call = call_.load(std::memory_order_relaxed);
    void* const context = context_.load(std::memory_order_relaxed);
    const int64_t chunk = num_chunks_.load(std::memory_order_relaxed) - left;
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
    call(context, chunk, thread);
    if (pending_.fetch_sub(1) == 1 && caller_waits_.load()) futex_wake(pending_, 1);
    return true;
  }
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    wait_for_op(seen);
    if (stop_.load()) return;
    seen = op_.load();
    while (claim_one(thread)) {
    }
  }
}

// Returns when the op number is another than `seen_op`.
void ThreadPool::wait_for_op(uint32_t seen_op) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (op_.load(std::memory_order_acquire) != seen_op) return;
    pause_once();
  }
  sleepers_.fetch_add(1);
  while (op_.load() == seen_op) futex_wait(op_, seen_op);
  sleepers_.fetch_sub(1);
}

}  // namespace rtp_llm::cpu
