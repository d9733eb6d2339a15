#include "handover/receiver_table.h"

#include <memory>
#include <string>
#include <utility>

namespace rtp_llm {

// --- QUEUED, GRANTED ---------------------------------------------------------------------------

void ReceiverTable::reserve(const event::FromSender& event, const message::Reserve& body, Seconds now, Actions& out) {
  const WorkerKey& sender = event.sender;
  const RequestKey& key = body.spec->key;
  if (const auto known = remembered.find(key); known != remembered.end()) {
    return say_over(sender, known->second, 0, out);
  }
  ReceiverAttempt* attempt = find(key);
  if (!attempt) return reserve_new(event, body, now, out);
  if (attempt->sender != sender) {
    out.push_back(action::ToSender{sender, message::PeerFenced{key}});
    return;
  }
  if (attempt->state == ReceiverState::kRunning) return to_sender(*attempt, message::PeerCommitted{key}, out);
  if (attempt->state != ReceiverState::kGranted) return;  // QUEUED: its answer comes; VERIFY: the bytes decide
  if (attempt->grant != body.given_up) return say_granted(*attempt, grants.at(attempt->grant), out);
  void_grant(attempt->grant, now);
  forget(key);
  reserve_new(event, body, now, out);
}

void ReceiverTable::reserve_new(const event::FromSender& event, const message::Reserve& body, Seconds now,
                                Actions& out) {
  const WorkerKey& sender = event.sender;
  const RequestKey key = body.spec->key;
  const auto answer = [&](message::FromReceiver message) {
    out.push_back(action::ToSender{sender, std::move(message)});
  };
  if (ledger.is_stale(key) || !routers.admits(key.router_epoch, now)) return answer(message::PeerFenced{key});
  if (routers.draining(key.router_epoch)) return answer(message::NoRoom{key, "draining"});
  if (event.invalid) return answer(message::NoRoom{key, *event.invalid});
  serve_queue(now, out);  // nobody overtakes
  if (static_cast<int>(queue.size()) >= config.max_waiting_reserves) {
    return answer(message::NoRoom{key, std::to_string(queue.size()) + " wait already"});
  }
  ReceiverAttempt& attempt = live[key];
  attempt.key = key;
  attempt.spec = body.spec;
  attempt.outputs.p0 = static_cast<int32_t>(body.spec->output.size());
  attempt.want = pool.want(body.spec);
  attempt.sender = sender;
  if (queue.empty() && try_grant(attempt, now, out)) return;
  queue.push_back(key);
  set_deadline(attempt, now + config.times.reserve_wait);
}

bool ReceiverTable::try_grant(ReceiverAttempt& attempt, Seconds now, Actions& out) {
  std::optional<GrantPool::Reservation> reservation = pool.grant(attempt.want);
  if (!reservation) return false;
  attempt.want = {};
  ReceiverGrant& grant = grants[++last_grant];
  grant.id = last_grant;
  grant.key = attempt.key;
  grant.sender = *attempt.sender;
  grant.reservation = std::move(*reservation);
  grant.prefix_tokens = grant.reservation.prefix_blocks * config.block_tokens;
  grant.tokens = static_cast<int32_t>(attempt.spec->prompt.size() + attempt.spec->output.size());
  attempt.state = ReceiverState::kGranted;
  attempt.grant = grant.id;
  set_deadline(attempt, now + config.times.lease);
  say_granted(attempt, grant, out);
  return true;
}

void ReceiverTable::say_granted(const ReceiverAttempt& attempt, const ReceiverGrant& grant, Actions& out) const {
  to_sender(attempt, message::Granted{grant.key, grant.id, grant.prefix_tokens, config.times.lease}, out);
}

void ReceiverTable::say_over(const WorkerKey& sender, const ReceiverAttempt& attempt, GrantId grant,
                             Actions& out) const {
  message::FromReceiver body = message::PeerFenced{attempt.key};
  if (attempt.finished) body = message::PeerCommitted{attempt.key, grant};
  out.push_back(action::ToSender{sender, std::move(body)});
}

// First come, first served; the first that doesn't fit holds the rest up, for reserve_wait at most.
void ReceiverTable::serve_queue(Seconds now, Actions& out) {
  while (!queue.empty()) {
    ReceiverAttempt* attempt = find(queue.front());
    const bool waits = attempt && attempt->state == ReceiverState::kQueued;
    if (waits && !try_grant(*attempt, now, out)) return;
    queue.pop_front();
  }
}

void ReceiverTable::renew_leases(const WorkerKey& sender, const std::vector<GrantId>& listed, Seconds now) {
  for (GrantId id : listed) {
    const auto grant = grants.find(id);
    if (grant == grants.end() || !grant->second.live || grant->second.sender != sender) continue;
    ReceiverAttempt& attempt = live.at(grant->second.key);
    if (attempt.state == ReceiverState::kGranted) set_deadline(attempt, now + config.times.lease);
  }
}

// --- VERIFY, RUNNING ---------------------------------------------------------------------------

void ReceiverTable::commit(const WorkerKey& sender, const message::Commit& body, Seconds now, Actions& out) {
  const auto answer = [&](message::FromReceiver message) {
    out.push_back(action::ToSender{sender, std::move(message)});
  };
  if (const auto known = remembered.find(body.key); known != remembered.end()) {
    return say_over(sender, known->second, body.grant, out);
  }
  ReceiverAttempt* attempt = find(body.key);
  if (attempt && attempt->sender == sender) {
    if (attempt->state == ReceiverState::kRunning) return answer(message::PeerCommitted{body.key, body.grant});
    const bool current = attempt->grant == body.grant && body.first.position == attempt->outputs.p0;
    if (attempt->state == ReceiverState::kVerify && current) return;  // again
    if (attempt->state == ReceiverState::kGranted && current && may_join(*attempt, body.first)) {
      attempt->state = ReceiverState::kVerify;
      attempt->commit = body;
      set_deadline(*attempt, now + config.times.verify_stall);
      return verify(*attempt, now, out);
    }
  }
  answer(message::Expired{body.key, body.grant});
}

// Its token is one, and there are no more alternatives than were asked for.
bool ReceiverTable::may_join(const ReceiverAttempt& attempt, const SampledToken& first) const {
  const auto most = static_cast<size_t>(std::max(attempt.spec->sampling.logprobs, 0));
  return first.token >= 0 && first.token < config.vocab_size && first.top_logprobs.size() <= most;
}

void ReceiverTable::verify(ReceiverAttempt& attempt, Seconds now, Actions& out) {
  const ReceiverGrant& grant = grants.at(attempt.grant);
  const message::Commit& commit = *attempt.commit;
  if (grant.bytes_accepted > commit.bytes) return bad_checksum(attempt, now, out);
  if (!grant.holds_exactly(commit.bytes)) return;
  if (grant.checksum != commit.checksum) return bad_checksum(attempt, now, out);
  run(attempt, now, out);
}

void ReceiverTable::run(ReceiverAttempt& attempt, Seconds, Actions& out) {
  const message::Commit commit = std::move(*attempt.commit);
  const ReceiverGrant grant = std::move(grants.extract(attempt.grant).mapped());
  pool.join(grant.reservation);
  attempt.state = ReceiverState::kRunning;
  attempt.arrival = grant.arrival();
  attempt.commit.reset();
  set_deadline(attempt, std::nullopt);
  attempt.outputs.note(commit.first);
  auto spec = std::make_shared<SequenceSpec>(*attempt.spec);
  attempt.spec.reset();
  spec->output.push_back(commit.first.token);
  out.push_back(action::JoinSequence{std::move(spec), grant.reservation.blocks, grant.prefix_tokens});
  to_sender(attempt, message::PeerCommitted{attempt.key, grant.id}, out);
  answer_again(attempt, out);
}

void ReceiverTable::bad_checksum(ReceiverAttempt& attempt, Seconds now, Actions& out) {
  const ReceiverGrant& grant = grants.at(attempt.grant);
  to_sender(attempt, message::BadChecksum{attempt.key, grant.id, attempt.commit->checksum, grant.checksum}, out);
  void_grant(grant.id, now);
  forget(attempt.key);
}

// Committed, and the tokens from p0 on.
void ReceiverTable::answer_again(const ReceiverAttempt& attempt, Actions& out) const {
  to_router(attempt.key, attempt.committed(), out);
  const std::vector<SampledToken>& tokens = attempt.outputs.tokens;
  if (!tokens.empty()) to_router(attempt.key, message::Outputs{attempt.key, tokens}, out);
}

// --- the end -----------------------------------------------------------------------------------

void ReceiverTable::abort(const WorkerKey& sender, const message::Abort& body, Seconds now, Actions& out) {
  const ReceiverAttempt* attempt = find(body.key);
  if (!attempt || attempt->sender != sender || attempt->state == ReceiverState::kRunning) return;
  const bool outdated = body.grant != 0 && body.grant < attempt->grant;  // its sender didn't know of this one
  if (!outdated) end(body.key, now, out);
}

void ReceiverTable::end(const RequestKey& key, Seconds now, Actions& out) {
  if (remembered.contains(key)) return;
  ReceiverAttempt& attempt = live[key];  // NONE: made, only to be remembered
  attempt.key = key;
  if (attempt.state == ReceiverState::kQueued) room_changed = true;  // it may have held others up
  if (attempt.state == ReceiverState::kRunning) {
    out.push_back(action::CancelSequence{key});
  } else if (attempt.sender) {
    to_sender(attempt, message::PeerFenced{key}, out);
  }
  if (attempt.state == ReceiverState::kGranted || attempt.state == ReceiverState::kVerify) {
    void_grant(attempt.grant, now);
  }
  remember(attempt, false, now);
}

void ReceiverTable::forget(const RequestKey& key) {
  deadlines.set(key, std::nullopt);
  live.erase(key);
}

void ReceiverTable::remember(ReceiverAttempt& attempt, bool finished, Seconds now) {
  attempt.state = ReceiverState::kOver;
  attempt.finished = finished;
  attempt.spec.reset();
  attempt.want = {};
  attempt.commit.reset();
  if (!finished) attempt.outputs.tokens = {};
  move_to_remembered(attempt, now);
}

void ReceiverTable::set_deadline(ReceiverAttempt& attempt, std::optional<Seconds> deadline) {
  deadlines.set(attempt.key, deadline);
}

void ReceiverTable::ran_out(ReceiverAttempt& attempt, Seconds now, Actions& out) {
  switch (attempt.state) {
    case ReceiverState::kQueued:
      to_sender(attempt, message::NoRoom{attempt.key, "no slot or blocks became free in time"}, out);
      room_changed = true;  // it may have held others up
      return forget(attempt.key);
    case ReceiverState::kGranted: void_grant(attempt.grant, now); return forget(attempt.key);
    case ReceiverState::kVerify: return bad_checksum(attempt, now, out);
    case ReceiverState::kRunning:
    case ReceiverState::kOver: return;
  }
}

// --- grants ------------------------------------------------------------------------------------

void ReceiverTable::void_grant(GrantId id, Seconds now) {
  ReceiverGrant& grant = grants.at(id);
  grant.live = false;
  pool.quarantine(grant.reservation);
  room_changed = true;  // its slot is free, whatever becomes of its blocks
  if (grant.receives_in_flight == 0) return free_quarantined(id);
  grant.close_at = now + config.times.quarantine;
  quarantines.set(id, grant.close_at);
}

void ReceiverTable::free_quarantined(GrantId id) {
  pool.free_quarantined(grants.at(id).reservation);
  quarantines.set(id, std::nullopt);
  grants.erase(id);
  room_changed = true;
}

// A late write is still possible: the endpoint of the grant's sender ends, and with it everything
// that the sender has under way here.
void ReceiverTable::close_endpoint(GrantId id, Seconds now, Actions& out) {
  const WorkerKey sender = grants.at(id).sender;
  if (!closing.insert(sender).second) {
    quarantines.set(id, now + config.times.quarantine);
    return;
  }
  out.push_back(action::CloseEndpoint{sender, Direction::kReceive});
  for (const RequestKey& key : keys_where([&](const ReceiverAttempt& attempt) {
         return attempt.sender == sender &&
                (attempt.state == ReceiverState::kGranted || attempt.state == ReceiverState::kVerify);
       })) {
    const ReceiverAttempt& attempt = live.at(key);
    to_sender(attempt, message::Expired{key, attempt.grant}, out);
    void_grant(attempt.grant, now);
    forget(key);
  }
}

}  // namespace rtp_llm
