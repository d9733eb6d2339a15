// open_device: finds, opens and asks one backend's shared object for a Device.
#include "device/device.h"

#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <cstring>

#include "device/queued_device.h"
#include "tensor/check.h"

namespace rtp_llm {
namespace {

// Whether the CPU has AMX with bf16 and the kernel grants its tile data to this process, which must ask: arch_prctl
// of ARCH_REQ_XCOMP_PERM, feature 18. The grant holds for all threads; a thread that uses no tiles pays nothing.
bool amx_granted() {
#if defined(__x86_64__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
                              syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

}  // namespace

int checked_tree_leaves(const DeviceOptions& options, int of_the_backend) {
  const int leaves = options.tree_leaves;
  check(leaves == 0 || leaves == 1 || leaves == 2 || leaves == 4, "tree_leaves must be 1, 2 or 4, got ", leaves);
  return leaves == 0 ? of_the_backend : leaves;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> isas;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("lzcnt") &&
                  __builtin_cpu_supports("movbe");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  const bool v4_bf16 = v4 && __builtin_cpu_supports("avx512bf16");
  if (v4_bf16 && amx_granted()) isas.push_back("amxbf16");
  if (v4_bf16) isas.push_back("avx512bf16");
  if (v3) isas.push_back("avx2");
#endif
  isas.push_back("generic");
  return isas;
}

namespace {

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

// The level asked for, or the best. Throws Unavailable for one that this machine can't run.
std::string choose_isa(const std::string& from_options) {
  const char* forced = std::getenv("RTP_LLM_ISA");
  const bool by_environment = forced != nullptr && *forced != '\0';
  const std::string wanted = by_environment ? forced : from_options;
  const std::vector<std::string> supported = supported_isas();
  if (wanted.empty()) return supported.front();
  for (const std::string& isa : supported)
    if (isa == wanted) return isa;
  throw Unavailable(concat("backend 'cpu': ISA '", wanted, "'", by_environment ? " (from RTP_LLM_ISA)" : "",
                           " is not available, this machine has ", joined(supported)));
}

void read_queued(DeviceOptions& options) {
  const char* seed = std::getenv("RTP_LLM_QUEUED_DEVICE");
  if (seed == nullptr || *seed == '\0') return;
  const char* const end = seed + std::strlen(seed);
  const auto [stopped, error] = std::from_chars(seed, end, options.queue_delay_seed);
  if (error != std::errc() || stopped != end)
    throw Unavailable(concat("RTP_LLM_QUEUED_DEVICE must be a number, got '", seed, "'"));
  options.queued = true;
}

DeviceFactory load_factory(const std::string& backend, const std::string& path) {
  if (access(path.c_str(), F_OK) != 0)
    throw Unavailable(
        concat("backend '", backend, "' is not installed here: there is no ", path,
               backend == "cuda" ? " (the wheel rtp-llm-cuda has it; in a checkout `make build-cuda`)" : ""));
  // Never closed: objects of the backend, their vtables too, may live as long as the process.
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw Unavailable(concat("backend '", backend, "': cannot open ", path, ": ", dlerror()));
  void* symbol = dlsym(library, kDeviceFactoryName);
  if (symbol == nullptr) throw Unavailable(concat("backend '", backend, "': ", path, " lacks ", kDeviceFactoryName));
  return reinterpret_cast<DeviceFactory>(symbol);
}

}  // namespace

std::unique_ptr<Device> open_device(const std::string& backend, const DeviceOptions& options,
                                    const std::string& library_dir) {
  DeviceOptions chosen = options;
  std::string library;
  if (backend == "cpu") {
    chosen.isa = choose_isa(options.isa);
    library = "librtp_cpu_" + chosen.isa + ".so";
  } else if (backend == "cuda") {
    library = "librtp_cuda.so";
  } else {
    throw Unavailable(concat("unknown backend '", backend, "', there are 'cpu' and 'cuda'"));
  }
  if (backend == "cpu")
    read_queued(chosen);
  else
    chosen.queued = false;  // it runs behind the host by itself
  std::unique_ptr<Device> device(load_factory(backend, library_dir + "/" + library)(&chosen));
  if (!chosen.queued) return device;
  return make_queued_device(std::move(device), {.delay_seed = chosen.queue_delay_seed});
}

}  // namespace rtp_llm
