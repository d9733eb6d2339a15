#include "engine/cached_block.h"

#include "tensor/check.h"

namespace rtp_llm {

namespace {

// One reference on the block that a hash is known by, if any.
class HeldBlock {
 public:
  HeldBlock(Engine& engine, const BlockHash& hash)
      : engine_(engine), blocks_(engine.block_pool().match(std::span(&hash, 1), 1)) {}
  ~HeldBlock() { engine_.block_pool().release(blocks_); }
  HeldBlock(const HeldBlock&) = delete;
  HeldBlock& operator=(const HeldBlock&) = delete;

  bool known() const { return !blocks_.empty(); }
  uint8_t* data() const {
    return static_cast<uint8_t*>(engine_.kv_pool_base()) + blocks_[0] * engine_.kv_layout().groups[0].block_bytes();
  }

 private:
  Engine& engine_;
  std::vector<int32_t> blocks_;
};

}  // namespace

std::optional<std::vector<uint8_t>> read_cached_block(Engine& engine, const BlockHash& hash) {
  const HeldBlock block(engine, hash);
  if (!block.known()) return std::nullopt;
  std::vector<uint8_t> bytes(static_cast<size_t>(engine.kv_layout().groups[0].block_bytes()));
  engine.device().copy(bytes.data(), block.data(), static_cast<int64_t>(bytes.size()));
  return bytes;
}

bool write_cached_block(Engine& engine, const BlockHash& hash, std::span<const uint8_t> bytes) {
  const int64_t expected = engine.kv_layout().groups[0].block_bytes(), given = static_cast<int64_t>(bytes.size());
  check(given == expected, "write_cached_block: ", given, " bytes given, a block has ", expected);
  const HeldBlock block(engine, hash);
  if (!block.known()) return false;
  engine.device().copy(block.data(), bytes.data(), given);
  return true;
}

}  // namespace rtp_llm
