// The module prefix_cache, for tests alone: a block pool without an engine, filled by hand, and what its prefix cache
// tells.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kv/block_pool.h"

namespace py = pybind11;

namespace rtp_llm {

namespace {

BlockHash hash_from(const std::string& bytes) {
  BlockHash hash;
  bytes.copy(reinterpret_cast<char*>(hash.bytes.data()), hash.bytes.size());
  return hash;
}

// A sequence of one block comes, its KV is cached under `hash`, and it ends.
void store(BlockPool& pool, const std::string& hash) {
  const std::optional<std::vector<int32_t>> blocks = pool.allocate(1);
  pool.insert(blocks->front(), hash_from(hash));
  pool.release(*blocks);
}

template <class T>
py::bytes packed(const std::vector<T>& records) {
  return {reinterpret_cast<const char*>(records.data()), records.size() * sizeof(T)};
}

}  // namespace

}  // namespace rtp_llm

PYBIND11_MODULE(prefix_cache, module) {
  using namespace rtp_llm;
  py::class_<BlockPool>(module, "BlockPool")
      .def(py::init<int, int>(), py::arg("num_blocks"), py::arg("block_tokens"))
      .def("store", &store, py::arg("hash"), "REQUIRES: nothing else refers to blocks. The oldest block makes room.")
      .def("withdraw", [](BlockPool& pool, const std::string& hash) { pool.withdraw(std::vector{hash_from(hash)}); })
      .def("last_cache_event", &BlockPool::last_cache_event)
      .def("cache_events",
           [](const BlockPool& pool, uint64_t first) -> std::optional<py::bytes> {
             const std::optional<std::vector<CacheEvent>> events = pool.cache_events(first);
             return events ? std::optional(packed(*events)) : std::nullopt;
           })
      .def("cache_snapshot", [](const BlockPool& pool) {
        const CacheSnapshot snapshot = pool.cache_snapshot();
        return std::pair(snapshot.number, packed(snapshot.hashes));
      });
}
