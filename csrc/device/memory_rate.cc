#include "device/memory_rate.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "tensor/check.h"

namespace rtp_llm {

namespace {

using Words [[gnu::vector_size(32)]] = uint64_t;

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)  // whose start-up the clones' resolver would run before
[[gnu::target_clones("avx2", "default")]]
#endif
uint64_t read_all(const uint8_t* at, int64_t bytes) {
  Words sums[4] = {};
  for (int64_t i = 0; i < bytes; i += 128) {
    __builtin_prefetch(at + i + 4096, 0, 2);
    __builtin_prefetch(at + i + 4160, 0, 2);
    for (int j = 0; j < 4; ++j) sums[j] ^= *reinterpret_cast<const Words*>(at + i + j * 32);
  }
  const Words sum = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  return sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
}

// Anonymous memory, in huge pages where there are any.
class Pages {
 public:
  explicit Pages(int64_t bytes) : bytes_(bytes) {
    at_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at_ == MAP_FAILED) throw Unavailable(concat("no memory for ", bytes, " bytes to read"));
    madvise(at_, bytes, MADV_HUGEPAGE);
    std::fill_n(data(), bytes, uint8_t{1});
  }
  ~Pages() { munmap(at_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  uint8_t* data() const { return static_cast<uint8_t*>(at_); }

 private:
  void* at_;
  int64_t bytes_;
};

}  // namespace

double memory_read_rate(int64_t bytes, int threads, int rounds) {
  check(bytes > 0 && threads > 0 && rounds > 0, "memory_read_rate of ", bytes, " bytes by ", threads,
        " threads, best of ", rounds);
  const int64_t piece = (bytes / threads + 4095) / 4096 * 4096;
  const Pages pages(piece * threads);
  std::atomic<uint64_t> sink{0};
  double best_s = 1e30;
  for (int round = 0; round < rounds; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i)
      others.emplace_back([&, i] { sink += read_all(pages.data() + i * piece, piece); });
    sink += read_all(pages.data(), piece);
    for (std::thread& other : others) other.join();
    best_s = std::min(best_s, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return static_cast<double>(piece * threads) / best_s;
}

}  // namespace rtp_llm
