#include "transfer/kv_staging.h"

#include <numeric>

#include "tensor/check.h"

namespace rtp_llm {

KvStaging::KvStaging(Device& device, int64_t slot_bytes, int num_slots)
    : device_(device),
      slot_bytes_(slot_bytes),
      memory_(device.allocate_pinned(slot_bytes * num_slots, "transfer.staging")),
      free_(static_cast<size_t>(num_slots)) {
  std::iota(free_.rbegin(), free_.rend(), 0);
}

KvStaging::Slot KvStaging::take(uint64_t bytes) {
  if (free_.empty() || bytes > static_cast<uint64_t>(slot_bytes_)) return Slot(this, kNone, new uint8_t[bytes], bytes);
  const int index = free_.back();
  free_.pop_back();
  return Slot(this, index, static_cast<uint8_t*>(memory_.data()) + index * slot_bytes_, bytes);
}

void KvStaging::Slot::GiveBack::operator()(uint8_t* data) const {
  if (index == kNone)
    delete[] data;
  else
    staging->free_.push_back(index);
}

void KvStaging::Slot::check_bytes(std::span<const Piece> pool) const {
  uint64_t bytes = 0;
  for (const Piece& piece : pool) bytes += piece.bytes;
  check(bytes == bytes_, "a message of ", bytes_, " bytes is staged, its pieces have ", bytes);
}

void KvStaging::Slot::load(std::span<const Piece> pool) {
  check_bytes(pool);
  uint8_t* to = data_.get();
  for (const Piece& piece : pool) {
    device().copy(to, piece.data, static_cast<int64_t>(piece.bytes));
    to += piece.bytes;
  }
}

void KvStaging::Slot::store(std::span<const Piece> pool) const {
  check_bytes(pool);
  const uint8_t* from = data_.get();
  for (const Piece& piece : pool) {
    device().copy(piece.data, from, static_cast<int64_t>(piece.bytes));
    from += piece.bytes;
  }
}

}  // namespace rtp_llm
