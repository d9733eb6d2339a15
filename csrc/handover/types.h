// Nouns of the handover: who a request is, what a grant is, what peers and routers say. Plain data.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kv/block_hash.h"

namespace rtp_llm {

// k = (router_epoch, request, choice, attempt). An attempt is one placement of a request by its
// router.
struct RequestKey {
  uint64_t router_epoch = 0;
  uint64_t request = 0;
  uint32_t choice = 0;
  uint32_t attempt = 0;
  auto operator<=>(const RequestKey&) const = default;
  // (router_epoch, request, choice): all attempts of one answer.
  RequestKey without_attempt() const { return {router_epoch, request, choice, 0}; }
  std::string str() const;
};

// A worker process: its id names the place, its epoch (random, drawn at process start) this
// incarnation.
struct WorkerKey {
  std::string id;
  uint64_t epoch = 0;
  auto operator<=>(const WorkerKey&) const = default;
  std::string str() const;
};

// Never repeats within an epoch of the receiver.
using GrantId = uint64_t;

// Header of a data-plane message: packed, little-endian, version first. One message = one run of
// layers (a layer group) of `tokens` tokens of the grant, scattered by the receiver into the
// granted blocks.
struct [[gnu::packed]] KvMessageHeader {
  uint8_t version = 1;
  uint8_t kv_group = 0;
  uint16_t first_layer = 0;  // index within the KV group
  uint16_t num_layers = 0;
  uint16_t reserved = 0;
  uint64_t receiver_epoch = 0;
  GrantId grant = 0;
  uint32_t first_token = 0;  // position within the sequence, at a block border
  uint32_t tokens = 0;
};
static_assert(sizeof(KvMessageHeader) == 32);

}  // namespace rtp_llm

template <>
struct std::hash<rtp_llm::RequestKey> {
  size_t operator()(const rtp_llm::RequestKey& key) const noexcept {
    uint64_t h = key.router_epoch ^ (key.request * 0x9e3779b97f4a7c15ull) ^ (uint64_t{key.choice} << 32 | key.attempt);
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ull;
    return static_cast<size_t>(h ^ (h >> 31));
  }
};
