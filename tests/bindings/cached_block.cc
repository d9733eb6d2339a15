// The module cached_block, for tests alone: the bytes of one block of an engine's prefix cache, by its hash, read and
// replaced from outside the step loop. With it they prove that answers depend on every block, whichever path brought
// it.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "tensor/check.h"

namespace py = pybind11;

namespace rtp_llm {

namespace {

// One reference on the block that a hash is known by, if any: it is neither evicted nor granted meanwhile.
class HeldBlock {
 public:
  HeldBlock(Engine& engine, const std::string& hash)
      : engine_(engine), blocks_(engine.block_pool().match(std::vector{hash_from(hash)}, 1)) {}
  ~HeldBlock() { engine_.block_pool().release(blocks_); }
  HeldBlock(const HeldBlock&) = delete;
  HeldBlock& operator=(const HeldBlock&) = delete;

  bool known() const { return !blocks_.empty(); }
  int64_t bytes() const { return engine_.kv_layout().groups[0].block_bytes(); }
  uint8_t* data() const { return static_cast<uint8_t*>(engine_.kv_pool_base()) + blocks_[0] * bytes(); }

 private:
  static BlockHash hash_from(const std::string& bytes) {
    BlockHash hash;
    check(bytes.size() == hash.bytes.size(), "a block hash has ", hash.bytes.size(), " bytes, got ", bytes.size());
    std::copy(bytes.begin(), bytes.end(), hash.bytes.begin());
    return hash;
  }

  Engine& engine_;
  std::vector<int32_t> blocks_;
};

py::object read(Engine& engine, const py::bytes& hash) {
  const HeldBlock block(engine, hash);
  if (!block.known()) return py::none();
  std::string bytes(static_cast<size_t>(block.bytes()), '\0');
  engine.device().copy(bytes.data(), block.data(), block.bytes());
  return py::bytes(bytes);
}

bool write(Engine& engine, const py::bytes& hash, const std::string& bytes) {
  const HeldBlock block(engine, hash);
  const auto given = static_cast<int64_t>(bytes.size());
  check(given == block.bytes(), given, " bytes given, a block has ", block.bytes());
  if (!block.known()) return false;
  engine.device().copy(block.data(), bytes.data(), given);
  return true;
}

}  // namespace

}  // namespace rtp_llm

PYBIND11_MODULE(cached_block, module) {
  module.def("read", &rtp_llm::read, py::arg("engine"), py::arg("hash"),
             "A block's bytes in the layout's order; None if the cache doesn't know the hash.");
  module.def("write", &rtp_llm::write, py::arg("engine"), py::arg("hash"), py::arg("bytes"),
             "Whether the cache knows the hash. REQUIRES: nothing runs.");
}
