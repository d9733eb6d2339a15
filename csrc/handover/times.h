// The protocol's times and sizes in one place. Times are seconds of the worker's monotonic clock.
#pragma once

#include <cstdint>

namespace rtp_llm {

using Seconds = double;

struct HandoverTimes {
  Seconds lease = 5.0;           // a grant's, from receipt of the last heartbeat that lists it
  Seconds lease_margin = 0.5;    // a sender stops posting so long before, by its own count
  Seconds repeat = 1.0;          // silence after which Reserve or Commit is repeated
  Seconds reserve_wait = 1.0;    // a Reserve that doesn't fit waits so long, then NoRoom
  Seconds verify_stall = 1.0;    // VERIFY without progress of bytes
  Seconds quarantine = 1.0;      // then the sender's endpoint is closed by force
  Seconds push_stall = 5.0;      // PUSH: no push ends for so long, though some are in flight
  Seconds flush = 1.0;           // sends may take so long after the end, then a forced close
  Seconds router_expiry = 10.0;  // after a router's session is lost
  Seconds memory = 60.0;         // what is over is remembered so long
};

struct HandoverConfig {
  HandoverTimes times;
  int num_layers = 1;          // of the KV group that is handed over
  int layers_per_message = 4;  // as EngineConfig: layers of one push
  int block_tokens = 16;
  int64_t token_layer_bytes = 0;   // all planes and heads of one token of one layer
  int max_push_tokens = 512;       // a longer run becomes several pushes; a multiple of block_tokens
  int max_waiting_reserves = 256;  // more: NoRoom at once
  int max_reserves = 3;            // grants tried for one k; after them Released
  int max_silences = 3;            // Reserves in a row without an answer; after them Released
  int64_t vocab_size = INT32_MAX;  // token ids of a Commit are below
};

}  // namespace rtp_llm
