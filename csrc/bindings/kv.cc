// KV layouts and block hashes, as sessions and the directory speak of them.

#include <pybind11/stl.h>

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "kv/block_hash.h"
#include "kv/block_pool.h"
#include "kv/kv_layout.h"
#include "kv/prefix_index.h"
#include "tensor/check.h"

namespace py = pybind11;

namespace rtp_llm {
namespace {

py::bytes as_bytes(std::string_view text) { return {text.data(), text.size()}; }

template <class T>
py::bytes as_bytes(const std::vector<T>& packed) {
  return as_bytes(std::string_view(reinterpret_cast<const char*>(packed.data()), packed.size() * sizeof(T)));
}

// What lies in `bytes` one after the other. T has no alignment.
template <class T>
std::span<const T> packed_in(std::string_view bytes) {
  static_assert(alignof(T) == 1);
  check(bytes.size() % sizeof(T) == 0, bytes.size(), " bytes aren't a number of records of ", sizeof(T));
  return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
}

// Without pybind11's caster, which takes three times as long for a list.
std::vector<int32_t> tokens_of(const py::sequence& given) {
  const auto items = py::reinterpret_steal<py::object>(PySequence_Fast(given.ptr(), "tokens are a sequence"));
  if (!items) throw py::error_already_set();
  std::vector<int32_t> tokens(static_cast<size_t>(PySequence_Fast_GET_SIZE(items.ptr())));
  PyObject** const item = PySequence_Fast_ITEMS(items.ptr());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const long value = PyLong_AsLong(item[i]);
    if (value == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
    tokens[i] = static_cast<int32_t>(value);
    check(tokens[i] == value, "token ", value, " has more than 32 bits");
  }
  return tokens;
}

py::bytes block_hashes(const std::string& salt, const py::sequence& given, int block_tokens) {
  const std::vector<int32_t> tokens = tokens_of(given);
  BlockHasher hasher(salt, block_tokens, /*hash_forms=*/false);
  hasher.reserve(static_cast<int64_t>(tokens.size()));
  hasher.append(tokens, Form::kPrefill);
  return as_bytes(hasher.hashes());
}

void bind_prefix_index(py::module_& module) {
  py::class_<PrefixHits>(module, "PrefixHits", "How many leading blocks of a prompt each cache holds.")
      .def_property_readonly(
          "blocks", [](const PrefixHits& hits) { return as_bytes(hits.by_cache()); }, "Of each cache by number, int32.")
      .def(
          "longest",
          [](const PrefixHits& hits, int count, uint32_t first) {
            std::vector<std::pair<int32_t, int32_t>> found;
            for (const int32_t cache : hits.longest(count, first)) found.emplace_back(cache, hits.blocks(cache));
            return found;
          },
          py::arg("count"), py::arg("first"),
          "(cache, blocks) of those with the most, most first; of equals from the `first`-th on.");
  py::class_<PrefixIndex>(module, "PrefixIndex", "Which caches hold which blocks; csrc/kv/prefix_index.h.")
      .def(py::init())
      .def("add_cache", &PrefixIndex::add_cache)
      .def("remove_cache", &PrefixIndex::remove_cache, py::arg("cache"))
      .def(
          "reset",
          [](PrefixIndex& index, int cache, std::string_view hashes) {
            index.reset(cache, packed_in<BlockHash>(hashes));
          },
          py::arg("cache"), py::arg("hashes"), "`hashes`: 16 bytes each, one after the other.")
      .def(
          "apply",
          [](PrefixIndex& index, int cache, std::string_view events) {
            index.apply(cache, packed_in<CacheEvent>(events));
          },
          py::arg("cache"), py::arg("events"), "`events`: 17 bytes each, kind and hash.")
      .def(
          "find",
          [](const PrefixIndex& index, std::string_view hashes) { return index.find(packed_in<BlockHash>(hashes)); },
          py::arg("hashes"))
      .def(
          "held_by", [](const PrefixIndex& index, int cache) { return as_bytes(index.held_by(cache)); },
          py::arg("cache"));
}

}  // namespace

void bind_kv(py::module_& module) {
  py::class_<KvLayout>(module, "KvLayout", "Where each byte of the KV cache lies.")
      .def(py::init([](int num_layers, int num_kv_heads, int head_dim, const std::string& dtype, int block_tokens) {
             return KvLayout::transformer(num_layers, num_kv_heads, head_dim, dtype_from_name(dtype), block_tokens);
           }),
           py::kw_only(), py::arg("num_layers"), py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("dtype"),
           py::arg("block_tokens"))
      .def("canonical_json", &KvLayout::canonical_json, py::arg("model_digest"))
      .def("fingerprint", &KvLayout::fingerprint, py::arg("model_digest"))
      .def_property_readonly("block_tokens", [](const KvLayout& layout) { return layout.groups[0].block_tokens; })
      .def_property_readonly("block_bytes", [](const KvLayout& layout) { return layout.groups[0].block_bytes(); });

  py::class_<BlockCounts>(module, "BlockCounts", "KV blocks by state; the states add up to total.")
      .def_readonly("total", &BlockCounts::total)
      .def_readonly("free", &BlockCounts::free)
      .def_readonly("referenced", &BlockCounts::referenced)
      .def_readonly("granted", &BlockCounts::granted)
      .def_readonly("quarantined", &BlockCounts::quarantined)
      .def_readonly("gated", &BlockCounts::gated)
      .def_readonly("cached", &BlockCounts::cached);

  module.def("describe_difference", &describe_difference, py::arg("here"), py::arg("there"),
             "What differs between two canonical JSON layouts, by path with both values; empty if nothing does.");
  module.def(
      "block_hash_salt",
      [](const std::string& model_digest, const std::string& adapter, const std::string& media) {
        return as_bytes(block_hash_salt(model_digest, adapter, media));
      },
      py::arg("model_digest"), py::arg("adapter") = "", py::arg("media") = "");
  module.def("block_hashes", &block_hashes, py::arg("salt"), py::arg("tokens"), py::arg("block_tokens"),
             "Hashes of the full blocks of `tokens`, 16 bytes each, one after the other; without form bits.");
  bind_prefix_index(module);
}

}  // namespace rtp_llm
