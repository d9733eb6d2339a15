#include "device/device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <set>

#include "device/numerics_digest.h"
#include "device_fixture.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

TEST(open_device_takes_the_best_isa_or_the_one_named) {
  const std::vector<std::string> isas = supported_isas();
  CHECK_EQ(isas.back(), std::string("generic"));
  on_each_isa([](const std::string& isa) {
    CHECK_EQ(device_of(isa).isa(), isa);
    CHECK_EQ(device_of(isa).backend(), std::string("cpu"));
    setenv("RTP_LLM_ISA", isa.c_str(), 1);
    CHECK_EQ(open_device("cpu", {}, library_dir())->isa(), isa);
    unsetenv("RTP_LLM_ISA");
  });
}

TEST(open_device_says_that_a_backend_is_not_installed) {
  CHECK_THROWS_WITH(open_device("cuda", {}, "/nowhere"), Unavailable,
                    "backend 'cuda' is not installed here: there is no /nowhere/librtp_cuda.so");
}

TEST(open_device_says_what_this_machine_has) {
  CHECK_THROWS_WITH(open_device("cpu", {.isa = "sve"}, library_dir()), Unavailable, "this machine has");
  setenv("RTP_LLM_ISA", "amx", 1);
  CHECK_THROWS_WITH(open_device("cpu", {}, library_dir()), Unavailable, "'amx' (from RTP_LLM_ISA)");
  unsetenv("RTP_LLM_ISA");
  CHECK_THROWS_WITH(open_device("tpu", {}, library_dir()), Unavailable, "unknown backend 'tpu'");
  CHECK_THROWS_WITH(open_device("cpu", {}, "/nowhere"), Unavailable, "/nowhere");
  CHECK_THROWS_WITH(open_device("cpu", {.num_threads = 0, .isa = "generic"}, library_dir()), InvalidArgument,
                    "num_threads must be 1..1024, got 0");
}

TEST(allocations_are_listed_zeroed_and_forgotten_when_freed) {
  Device& device = device_of("generic");
  const size_t before = device.allocations().size();
  {
    const Buffer small = device.allocate(100, "small"), large = device.allocate(5 << 20, "large");
    CHECK_EQ(device.allocations().size(), before + 2);
    CHECK_EQ(device.allocations().back().tag, std::string("large"));
    CHECK_EQ(device.allocations().back().bytes, 5 << 20);
    CHECK_EQ(reinterpret_cast<uintptr_t>(large.data()) % (2 << 20), 0);
    CHECK_EQ(large.shared_fd(), -1);
    for (int64_t i = 0; i < large.bytes(); ++i) REQUIRE(static_cast<uint8_t*>(large.data())[i] == 0);
  }
  CHECK_EQ(device.allocations().size(), before);
  CHECK_THROWS_WITH(device.allocate(int64_t{1} << 60, "kv_pool"), Unavailable,
                    "1152921504606846976 bytes for 'kv_pool'");
  CHECK_THROWS_WITH(device.allocate(0, "kv_pool"), InvalidArgument, "must be positive");
}

TEST(shareable_memory_is_seen_through_its_file) {
  Device& device = device_of("generic");
  const Buffer pool = device.allocate_shareable(3 << 20, "kv_pool");
  REQUIRE(pool.shared_fd() >= 0);
  static_cast<uint8_t*>(pool.data())[12345] = 42;
  void* const mapped = mmap(nullptr, 3 << 20, PROT_READ, MAP_SHARED, pool.shared_fd(), 0);
  REQUIRE(mapped != MAP_FAILED);
  CHECK_EQ(static_cast<uint8_t*>(mapped)[12345], 42);
  CHECK_EQ(static_cast<uint8_t*>(mapped)[12346], 0);
  munmap(mapped, 3 << 20);
}

TEST(the_numerics_digest_is_stable_and_tells_types_apart) {
  on_each_isa([](const std::string& isa) {
    std::set<uint64_t> digests;
    for (DType weights : {DType::kF32, DType::kBF16})
      for (DType kv : {DType::kF32, DType::kBF16}) {
        const uint64_t digest = numerics_digest(device_of(isa), weights, kv);
        CHECK_EQ(numerics_digest(device_of(isa, 2), weights, kv), digest);
        CHECK(digests.insert(digest).second);
      }
  });
}
