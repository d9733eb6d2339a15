#include "transfer/engine_bridge.h"

#include "transfer/clock.h"
#include "transfer/invalid_request.h"

namespace rtp_llm {
namespace {

// What a router is told of it.
message::Failed failed(const RequestKey& key, const InvalidArgument& error) {
  const auto* invalid = dynamic_cast<const InvalidRequest*>(&error);
  return {.key = key,
          .type = invalid ? invalid->type() : "InvalidRequestError",
          .message = error.what(),
          .param = invalid ? invalid->param() : ""};
}

}  // namespace

// ---- What the engine says: stamped and posted

void EngineBridge::on_scheduled(const RequestKey& key, std::vector<int32_t> blocks, int tokens, int cached_tokens) {
  inbox_.push(
      [this, at = monotonic_seconds(), event = event::Scheduled{key, std::move(blocks), tokens, cached_tokens}] {
        trace_.add({.time = at,
                    .key = event.key,
                    .point = TracePoint::kScheduled,
                    .first_token = event.cached_tokens,
                    .tokens = event.tokens - event.cached_tokens});
        if (const auto start = starts_.find(event.key); start != starts_.end()) {
          start->second.cached_tokens = event.cached_tokens;
          start->second.planned_at = at;
        }
        handle_(event);
      });
}

void EngineBridge::on_prefilled(const RequestKey& key, int32_t token, float logprob,
                                std::vector<std::pair<int32_t, float>> top_logprobs, FinishReason finish) {
  SampledToken first{.token = token, .logprob = logprob, .finish = finish, .top_logprobs = std::move(top_logprobs)};
  inbox_.push([this, at = monotonic_seconds(), event = event::Prefilled{key, std::move(first)}]() mutable {
    trace_.add({.time = at, .key = event.key, .point = TracePoint::kFirstToken});
    if (const auto start = starts_.find(event.key); start != starts_.end()) {
      event.first.position = start->second.position;
      event.first.num_cached_tokens = start->second.cached_tokens;
      event.first.times = {.queued = static_cast<float>(start->second.planned_at - start->second.added_at),
                           .prefill = static_cast<float>(at - start->second.planned_at)};
    }
    handle_(event);
  });
}

void EngineBridge::on_finished(const RequestKey& key, FinishReason finish) {
  inbox_.push([this, event = event::Finished{key, finish}] { handle_(event); });
}

void EngineBridge::on_failed(const std::string& message) {
  inbox_.push([message] { throw Error(concat("the engine has failed: ", message)); });
}

// ---- What is wanted of it

std::optional<message::Failed> EngineBridge::objection(const SequenceSpec& spec, Role role) const {
  try {
    engine_.validate(spec, role);
    return std::nullopt;
  } catch (const InvalidArgument& error) {
    return failed(spec.key, error);
  }
}

void EngineBridge::enqueue(const action::EnqueueSequence& action) {
  const RequestKey& key = action.spec->key;
  if (action.role == Role::kSender)
    starts_[key] = {.position = static_cast<int32_t>(action.spec->output.size()), .added_at = monotonic_seconds()};
  try {
    engine_.add(*action.spec, action.role);
  } catch (const InvalidArgument& error) {
    reject(key, error);
  }
}

void EngineBridge::join(const action::JoinSequence& action) {
  const RequestKey& key = action.spec->key;
  try {
    engine_.join(*action.spec, action.blocks);
  } catch (const InvalidArgument& error) {
    engine_.slot_pool().give_back(key.router_epoch);
    engine_.block_pool().release(action.blocks);
    reject(key, error);
  }
}

void EngineBridge::release(const action::ReleaseBlocks& action) {
  starts_.erase(action.key);
  engine_.release(action.key);
}

void EngineBridge::reject(const RequestKey& key, const InvalidArgument& error) {
  handle_(event::Rejected{failed(key, error)});
}

}  // namespace rtp_llm
