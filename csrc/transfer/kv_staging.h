// KvStaging: host memory for KV between UCX and a device whose memory UCX can't reach. A message's pieces of the pool
// lie there one after the other, in wire order.
//
// Slots of pinned memory of the longest usual message; when all are taken, or for a longer message, ordinary memory.
//
// Thread rule: one thread (the transfer thread). Slots must die before their KvStaging.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "device/device.h"
#include "transfer/transport.h"

namespace rtp_llm {

class KvStaging {
  static constexpr int kNone = -1;  // index of ordinary memory

 public:
  // Throws Unavailable: no pinned memory.
  KvStaging(Device& device, int64_t slot_bytes, int num_slots);

  // One message's bytes; given back when it dies.
  class Slot {
   public:
    Slot() = default;

    Piece piece() const { return {data_.get(), bytes_}; }
    // Each returns when all is copied. REQUIRES: the pieces are of the pool and make up `bytes`.
    void load(std::span<const Piece> pool);
    void store(std::span<const Piece> pool) const;

   private:
    friend class KvStaging;
    struct GiveBack {
      KvStaging* staging;
      int index;
      void operator()(uint8_t* data) const;
    };
    Slot(KvStaging* staging, int index, uint8_t* data, uint64_t bytes) : data_(data, {staging, index}), bytes_(bytes) {}

    void check_bytes(std::span<const Piece> pool) const;
    Device& device() const { return data_.get_deleter().staging->device_; }

    std::unique_ptr<uint8_t[], GiveBack> data_;
    uint64_t bytes_ = 0;
  };

  Slot take(uint64_t bytes);
  int num_free() const { return static_cast<int>(free_.size()); }

 private:
  Device& device_;
  const int64_t slot_bytes_;
  Buffer memory_;
  std::vector<int> free_;
};

}  // namespace rtp_llm
