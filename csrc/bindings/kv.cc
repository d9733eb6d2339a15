// KV layouts and block hashes, as sessions and the directory speak of them.

#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "kv/block_hash.h"
#include "kv/block_pool.h"
#include "kv/kv_layout.h"

namespace py = pybind11;

namespace rtp_llm {
namespace {

py::bytes as_bytes(std::string_view text) { return {text.data(), text.size()}; }

std::vector<py::bytes> block_hashes(const py::bytes& salt, const std::vector<int32_t>& tokens, int block_tokens) {
  BlockHasher hasher(salt, block_tokens, /*hash_forms=*/false);
  hasher.append(tokens, Form::kPrefill);
  std::vector<py::bytes> hashes;
  for (const BlockHash& hash : hasher.hashes())
    hashes.push_back(as_bytes({reinterpret_cast<const char*>(hash.bytes.data()), hash.bytes.size()}));
  return hashes;
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
             "16-byte hash of each full block of `tokens`, without form bits.");
}

}  // namespace rtp_llm
