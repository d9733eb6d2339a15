#include "kv/cache_log.h"

#include "tensor/check.h"

namespace rtp_llm {

std::optional<std::vector<CacheEvent>> CacheLog::since(uint64_t first) const {
  check(first > 0, "cache events are numbered from 1, got ", first);
  const uint64_t next = last_ + 1;
  if (first > next || next - first > ring_.size()) return std::nullopt;
  std::vector<CacheEvent> events;
  events.reserve(next - first);
  for (uint64_t number = first; number < next; ++number) events.push_back(ring_[(number - 1) % ring_.size()]);
  return events;
}

}  // namespace rtp_llm
