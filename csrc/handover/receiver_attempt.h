// ReceiverAttempt, ReceiverGrant: what a Receiver knows of one k and of one grant. Private to the
// receiver.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "handover/grant_pool.h"
#include "handover/messages.h"
#include "handover/receiver.h"
#include "handover/token_log.h"

namespace rtp_llm {

struct ReceiverGrant {
  GrantId id = 0;
  RequestKey key;
  WorkerKey sender;  // and so the endpoint that its messages come by
  GrantPool::Reservation reservation;
  int32_t prefix_tokens = 0;  // prefix hits: nothing is written before
  int32_t tokens = 0;         // prompt and output so far
  bool live = true;           // else quarantined
  int32_t receives_in_flight = 0;
  uint64_t bytes_accepted = 0, bytes_received = 0, checksum = 0;
  Seconds receiving_since = 0;      // receives are in flight
  Seconds receiving = 0;            // that receives were in flight, all together
  Seconds verify = 0;               // of all its messages
  std::optional<Seconds> close_at;  // quarantined

  int32_t fresh_blocks() const { return static_cast<int32_t>(reservation.blocks.size()) - reservation.prefix_blocks; }
  std::optional<Refusal> check(const KvMessageHeader& header, uint64_t payload_bytes,
                               const HandoverConfig& config) const;
  message::ArrivalTimes arrival() const;
  // All of these bytes are here and nothing is on its way.
  bool holds_exactly(uint64_t bytes) const { return receives_in_flight == 0 && bytes_received == bytes; }
};

struct ReceiverAttempt {
  RequestKey key;
  message::SpecPtr spec;            // QUEUED, GRANTED, VERIFY: until the engine has it
  GrantPool::Want want;             // QUEUED
  std::optional<WorkerKey> sender;  // unset: only a Cancel or a Fence was heard
  ReceiverState state = ReceiverState::kQueued;
  GrantId grant = 0;                      // GRANTED, VERIFY
  std::optional<message::Commit> commit;  // VERIFY
  bool finished = false;                  // OVER: ran to its end
  TokenLog outputs;                       // RUNNING, and OVER if finished
  message::ArrivalTimes arrival;          // likewise

  message::Committed committed() const { return {key, arrival}; }
};

}  // namespace rtp_llm
