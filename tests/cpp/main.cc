#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "check.h"

namespace rtp_llm::testing {
namespace {

int failures_of_test = 0;

std::string full_name(const Test& test) { return std::filesystem::path(test.file).stem().string() + "." + test.name; }

bool selected(const std::string& name, const std::vector<std::string>& filters) {
  if (filters.empty()) return true;
  for (const std::string& filter : filters) {
    if (name.find(filter) != std::string::npos) return true;
  }
  return false;
}

// Returns whether the test passed.
bool run(const Test& test, const std::string& name) {
  failures_of_test = 0;
  const auto begin = std::chrono::steady_clock::now();
  try {
    test.run();
  } catch (const Abandon&) {
  } catch (const std::exception& error) {
    report(test.file, 0, std::string("uncaught exception: ") + error.what());
  }
  const std::chrono::duration<double, std::milli> ms = std::chrono::steady_clock::now() - begin;
  const bool passed = failures_of_test == 0;
  std::printf("%s %s (%.1f ms)\n", passed ? "ok  " : "FAIL", name.c_str(), ms.count());
  std::fflush(stdout);
  return passed;
}

}  // namespace

void report(const char* file, int line, const std::string& what) {
  ++failures_of_test;
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

}  // namespace rtp_llm::testing

int main(int argc, char** argv) {
  using namespace rtp_llm::testing;
  bool list = false;
  std::vector<std::string> filters;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--list") == 0) {
      list = true;
    } else {
      filters.emplace_back(argv[i]);
    }
  }
  int passed = 0;
  int failed = 0;
  for (const Test& test : tests()) {
    const std::string name = full_name(test);
    if (!selected(name, filters)) continue;
    if (list) {
      std::printf("%s\n", name.c_str());
    } else {
      ++(run(test, name) ? passed : failed);
    }
  }
  if (list) return 0;
  std::printf("%d passed, %d failed\n", passed, failed);
  if (passed + failed == 0) {
    std::fprintf(stderr, "no test matches\n");
    return 2;
  }
  return failed == 0 ? 0 : 1;
}
