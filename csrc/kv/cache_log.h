// CacheLog: what has happened to a prefix cache, numbered from 1, as far back as its ring reaches. Readers bring the
// number that they want to read from; the log knows none of them. PrefixCache owns one.
//
// All memory is taken at construction: to note an event is a write into the ring.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "kv/block_hash.h"

namespace rtp_llm {

// As it lies in messages (docs/sessions.md).
struct CacheEvent {
  enum class Kind : uint8_t {
    kStored = 1,   // the block's KV is cached here
    kEvicted = 2,  // it isn't any more
    kCleared = 3,  // nothing is; the hash means nothing
  };
  static constexpr size_t kBytes = 17;

  Kind kind = Kind::kCleared;
  BlockHash hash;
  bool operator==(const CacheEvent&) const = default;
};
static_assert(sizeof(CacheEvent) == CacheEvent::kBytes);

// All that a cache holds after the event `number`, in no order.
struct CacheSnapshot {
  uint64_t number = 0;
  std::vector<BlockHash> hashes;
};

class CacheLog {
 public:
  // REQUIRES: capacity > 0.
  explicit CacheLog(size_t capacity) : ring_(capacity) {}

  void append(CacheEvent::Kind kind, const BlockHash& hash) { ring_[last_++ % ring_.size()] = {kind, hash}; }
  // Of the newest event; 0: there was none.
  uint64_t last() const { return last_; }
  // The events from number `first` on (none if that is the next one); nullopt if the ring doesn't hold all of them, or
  // `first` is beyond the next one. REQUIRES: first > 0.
  std::optional<std::vector<CacheEvent>> since(uint64_t first) const;

 private:
  std::vector<CacheEvent> ring_;
  uint64_t last_ = 0;
};

}  // namespace rtp_llm
