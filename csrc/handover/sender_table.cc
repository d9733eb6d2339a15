#include "handover/sender_table.h"

#include <algorithm>
#include <utility>

namespace rtp_llm {

bool runs_alone(const message::Submit& submit, const WorkerKey& self) {
  const bool must_end_with_first_token =
      static_cast<int64_t>(submit.spec->output.size()) + 1 >= submit.spec->sampling.max_tokens;
  return !submit.receiver || *submit.receiver == self || must_end_with_first_token;
}

// --- QUEUED, COMPUTE ---------------------------------------------------------------------------

void SenderTable::submit(const event::FromRouter& event, const message::Submit& body, Actions& out, Seconds now) {
  const RequestKey key = body.spec->key;
  if (knows(key)) return;  // doubled
  const auto answer = [&](message::ToRouter notice) {
    out.push_back(action::ToRouter{event.router_epoch, std::move(notice)});
  };
  if (ledger.is_stale(key)) return answer(message::Fenced{key});
  const auto begin = [&]() -> SenderAttempt& {
    SenderAttempt& attempt = live[key];
    attempt.key = key;
    attempt.spec = body.spec;
    attempt.outputs.p0 = static_cast<int32_t>(body.spec->output.size());
    return attempt;
  };
  if (event.invalid) {
    SenderAttempt& attempt = begin();
    notify(attempt, *event.invalid, out);
    return remember(attempt, now);
  }
  if (event.queued_tokens >= event.max_queued_tokens || routers.draining(key.router_epoch)) {
    return answer(message::Busy{key, event.queued_tokens, event.max_queued_tokens});
  }
  SenderAttempt& attempt = begin();
  if (runs_alone(body, self)) {
    attempt.state = SenderState::kLocal;
    out.push_back(action::EnqueueSequence{body.spec, Role::kAlone});
    return;
  }
  attempt.receiver = body.receiver;
  out.push_back(action::Meet{*body.receiver, body.receiver_address});
  out.push_back(action::EnqueueSequence{body.spec, Role::kSender});
}

void SenderTable::reserve(SenderAttempt& attempt, Seconds now, Actions& out) {
  attempt.state = SenderState::kCompute;
  attempt.reserved = true;
  attempt.repeat_at = now + config.times.repeat;
  to_receiver(attempt, message::Reserve{attempt.spec, attempt.given_up}, out);
}

// The first token is sent when it is known where the second will come from.
void SenderTable::say_first(SenderAttempt& attempt, Actions& out) {
  if (!attempt.first || std::exchange(attempt.first_said, true)) return;
  attempt.outputs.note(*attempt.first);
  say(attempt, message::Outputs{attempt.key, {*attempt.first}}, out);
}

void SenderTable::granted(SenderAttempt& attempt, const message::Granted& body, Seconds now, Actions& out) {
  attempt.newest_grant = std::max(attempt.newest_grant, body.grant);
  const bool waits = attempt.state == SenderState::kCompute && !attempt.without_receiver;
  if (waits) {
    if (body.grant <= attempt.given_up) return;  // an answer to an earlier Reserve
    if (const std::string objection = attempt.objection(body, config); !objection.empty()) {
      abort(attempt, out);
      return go_without(attempt, "a grant that can't be: " + objection, now, out);
    }
    attempt.begin(body, now);
    attempt.state = SenderState::kPush;
    attempt.silences = 0;
    attempt.repeat_at.reset();
    say_first(attempt, out);
    go_on_pushing(attempt, now, out);
  } else if (attempt.has_grant()) {
    if (body.grant > attempt.grant->id) await(attempt, now, out);  // so ours is void there
  } else if (attempt.state != SenderState::kAwait) {
    abort(attempt, out);  // nobody will use it
  }
}

void SenderTable::go_on_pushing(SenderAttempt& attempt, Seconds now, Actions& out) {
  attempt.push(config, now, out);
  if (attempt.is_sent()) commit(attempt, now, out);
}

void SenderTable::commit(SenderAttempt& attempt, Seconds now, Actions& out) {
  attempt.state = SenderState::kCommit;
  attempt.repeat_at = now + config.times.repeat;
  const SenderGrant& grant = *attempt.grant;
  to_receiver(attempt, message::Commit{attempt.key, grant.id, *attempt.first, grant.bytes, grant.checksum}, out);
}

// --- a grant went wrong ------------------------------------------------------------------------

void SenderTable::await(SenderAttempt& attempt, Seconds now, Actions& out) {
  attempt.given_up = attempt.grant->id;
  attempt.grant.reset();
  ++attempt.grants_failed;
  attempt.state = SenderState::kAwait;
  attempt.repeat_at.reset();
  attempt.close_at = now + config.times.flush;
  leave_await(attempt, now, out);
}

void SenderTable::leave_await(SenderAttempt& attempt, Seconds now, Actions& out) {
  if (attempt.pushes_in_flight > 0) return;
  attempt.close_at.reset();
  if (attempt.grants_failed < config.max_reserves) return reserve(attempt, now, out);
  abort(attempt, out);
  go_without(attempt, std::to_string(attempt.grants_failed) + " grants failed", now, out);
}

void SenderTable::go_without(SenderAttempt& attempt, std::string reason, Seconds now, Actions& out) {
  attempt.without_receiver = std::move(reason);
  attempt.grant.reset();
  attempt.repeat_at.reset();
  attempt.close_at.reset();
  if (attempt.state != SenderState::kQueued) attempt.state = SenderState::kCompute;
  if (attempt.first) released(attempt, now, out);
}

void SenderTable::no_room(SenderAttempt& attempt, const std::string& reason, Seconds now, Actions& out) {
  attempt.keeps_first = !attempt.first_said;
  go_without(attempt, "no room: " + reason, now, out);
}

void SenderTable::released(SenderAttempt& attempt, Seconds now, Actions& out) {
  if (!attempt.keeps_first) say_first(attempt, out);
  notify(attempt, message::Released{attempt.key, *attempt.without_receiver}, out);
  flush(attempt, now, out);
}

bool SenderTable::close_endpoint(const WorkerKey& peer, Seconds now, Actions& out) {
  if (!closing.insert(peer).second) return false;
  out.push_back(action::CloseEndpoint{peer, Direction::kSend});
  endpoint_broken(peer, now, out);
  return true;
}

// What was sent on it may never arrive, though its sends completed here.
void SenderTable::endpoint_broken(const WorkerKey& peer, Seconds now, Actions& out) {
  for (const RequestKey& key : keys_where([&](const SenderAttempt& attempt) {
         return attempt.has_grant() && *attempt.receiver == peer && attempt.grant->messages > 0;
       })) {
    await(live.at(key), now, out);
    settle(key);
  }
}

// --- the end -----------------------------------------------------------------------------------

void SenderTable::end(SenderAttempt& attempt, Seconds now, Actions& out) {
  if (attempt.state == SenderState::kFlush) return;
  attempt.notice = message::Fenced{attempt.key};
  if (!attempt.first) out.push_back(action::CancelSequence{attempt.key});
  if (attempt.is_local()) return remember(attempt, now);
  abort(attempt, out);
  flush(attempt, now, out);
}

void SenderTable::abort(SenderAttempt& attempt, Actions& out) {
  if (attempt.reserved) to_receiver(attempt, message::Abort{attempt.key, attempt.newest_grant}, out);
}

void SenderTable::flush(SenderAttempt& attempt, Seconds now, Actions& out) {
  attempt.state = SenderState::kFlush;
  attempt.grant.reset();
  attempt.repeat_at.reset();
  attempt.close_at.reset();
  if (attempt.pushes_in_flight > 0) {
    attempt.close_at = now + config.times.flush;
    return;
  }
  out.push_back(action::ReleaseBlocks{attempt.key});
  remember(attempt, now);
}

void SenderTable::remember(SenderAttempt& attempt, Seconds now) {
  attempt.state = SenderState::kGone;
  attempt.shrink();
  move_to_remembered(attempt, now);
}

// --- time --------------------------------------------------------------------------------------

void SenderTable::ran_out(SenderAttempt& attempt, Seconds now, Actions& out) {
  if (attempt.state == SenderState::kPush && attempt.is_stalled(config.times, now)) {
    return await(attempt, now, out);
  }
  if (attempt.repeat_at && *attempt.repeat_at <= now) {
    if (attempt.state == SenderState::kCommit) return commit(attempt, now, out);
    if (++attempt.silences < config.max_silences) return reserve(attempt, now, out);
    abort(attempt, out);
    return go_without(attempt, std::to_string(attempt.silences) + " Reserves without an answer", now, out);
  }
  if (attempt.close_at && *attempt.close_at <= now) {
    attempt.close_at.reset();  // what is in flight ends with the endpoint
    if (!close_endpoint(*attempt.receiver, now, out)) attempt.close_at = now + config.times.flush;
  }
}

void SenderTable::replay(const SenderAttempt& attempt, int32_t next_position, Actions& out) const {
  message::Outputs outputs{attempt.key, attempt.outputs.from(next_position)};
  if (!outputs.tokens.empty()) say(attempt, std::move(outputs), out);
  if (attempt.notice) say(attempt, *attempt.notice, out);
}

void SenderTable::from_receiver(SenderAttempt& attempt, const message::FromReceiver& body, Seconds now, Actions& out) {
  const SenderState state = attempt.state;
  const bool involved = state != SenderState::kQueued && state != SenderState::kFlush && !attempt.without_receiver;
  const auto is_current = [&](GrantId grant) { return attempt.has_grant() && attempt.grant->id == grant; };
  if (const auto* grant = std::get_if<message::Granted>(&body)) {
    granted(attempt, *grant, now, out);
  } else if (!involved) {
    return;
  } else if (std::holds_alternative<message::PeerCommitted>(body)) {
    if (attempt.first) flush(attempt, now, out);
  } else if (const auto* no_room = std::get_if<message::NoRoom>(&body)) {
    if (state == SenderState::kCompute) this->no_room(attempt, no_room->reason, now, out);
  } else if (std::holds_alternative<message::PeerFenced>(body)) {
    go_without(attempt, "fenced by " + attempt.receiver->str(), now, out);
  } else if (const auto* expired = std::get_if<message::Expired>(&body)) {
    if (is_current(expired->grant)) await(attempt, now, out);
  } else if (const auto* bad = std::get_if<message::BadChecksum>(&body)) {
    if (is_current(bad->grant)) await(attempt, now, out);
  }
}

}  // namespace rtp_llm
