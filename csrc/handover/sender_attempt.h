// SenderAttempt: what a Sender knows of one k that it runs. Private to the sender.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "handover/actions.h"
#include "handover/sender.h"
#include "handover/token_log.h"

namespace rtp_llm {

struct SenderGrant {
  GrantId id = 0;
  Seconds lease_until = 0;       // by our own count
  std::vector<int32_t> pushed;   // per layer group: tokens posted or known to the receiver, from the start
  int32_t pushes_in_flight = 0;  // into this grant
  Seconds progress_at = 0;       // when it had none in flight, or one ended
  uint64_t messages = 0, bytes = 0, checksum = 0;
};

struct SenderAttempt {
  RequestKey key;
  message::SpecPtr spec;              // until GONE
  std::optional<WorkerKey> receiver;  // unset: alone
  SenderState state = SenderState::kQueued;
  std::vector<int32_t> blocks;        // the engine's, once scheduled
  int32_t num_tokens = 0;             // prompt and output so far
  std::vector<int32_t> computed;      // per layer group: tokens stored, from the start
  std::optional<SampledToken> first;  // at p0, once computed
  bool first_said = false;            // and sent to the router
  std::optional<SenderGrant> grant;   // in PUSH and COMMIT
  GrantId given_up = 0;               // the last one that went wrong
  GrantId newest_grant = 0;           // that the receiver named
  int grants_failed = 0;
  bool reserved = false;                        // a Reserve was sent: an end needs an Abort
  int silences = 0;                             // Reserves in a row that nobody answered in time
  std::optional<std::string> without_receiver;  // why the prompt is finished without one
  bool keeps_first = false;                     // as R has no room: the router has nothing yet, its retry may wait
  int32_t pushes_in_flight = 0;                 // into any grant
  std::optional<Seconds> repeat_at;             // Reserve or Commit
  std::optional<Seconds> close_at;              // AWAIT and FLUSH: pushes may take so long
  TokenLog outputs;                             // for a replay
  std::optional<message::ToRouter> notice;      // the last, for a replay

  bool is_local() const { return state == SenderState::kLocal; }
  bool has_grant() const { return state == SenderState::kPush || state == SenderState::kCommit; }
  std::optional<Seconds> deadline(const HandoverTimes& times) const;
  std::optional<Seconds> push_limit(const HandoverTimes& times) const;  // REQUIRES: PUSH
  // What only a live attempt needs: what is remembered for a minute must be small.
  void shrink();
  // All layers of the whole prompt are stored, sampled and posted, and each push has ended well.
  bool is_sent() const;
  // Why a Granted can't be right, whoever said it; empty: it may be.
  std::string objection(const message::Granted& granted, const HandoverConfig& config) const;
  // A grant was given: everything from its prefix on is still to be pushed. REQUIRES: no objection.
  void begin(const message::Granted& granted, Seconds now);
  // What is computed and not pushed yet: whole blocks, or up to the prompt's end.
  void push(const HandoverConfig& config, Seconds now, Actions& out);
  // PUSH has come to a stand: the lease is over by our own count, or no push ends.
  bool is_stalled(const HandoverTimes& times, Seconds now) const { return *push_limit(times) <= now; }
};

}  // namespace rtp_llm
