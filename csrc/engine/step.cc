// The engine thread: the step loop, in the order of a step.
#include <algorithm>
#include <chrono>
#include <limits>
#include <span>

#include "engine/engine_state.h"
#include "engine/sampling.h"

namespace rtp_llm {

void Engine::State::run() {
  engine_thread = std::this_thread::get_id();
  try {
    bool idle = false;
    while (wait(idle)) {
      running_since = std::chrono::steady_clock::now();
      idle = !step();
      running_since = std::chrono::steady_clock::time_point();
    }
  } catch (const std::exception& error) {
    fail(error.what());
  }
}

bool Engine::State::step() {
  admit();
  const Schedule& schedule = scheduler.schedule(cost);
  announce(schedule);
  if (schedule.empty()) return false;
  Batch& batch = executor.prepare(schedule);
  forward(batch);
  executor.sample(batch);
  publish(batch);
  return true;
}

// Takes the inbox; when idle, blocks until there is something in it or blocks became free. False: stop.
bool Engine::State::wait(bool idle) {
  std::unique_lock lock(mutex);
  if (idle) wakeup.wait(lock, [&] { return stopping || woken || !inbox.empty(); });
  woken = false;
  commands.swap(inbox);
  return !stopping;
}

void Engine::State::admit() {
  if (commands.empty()) return;
  for (Command& command : commands) {
    switch (command.kind) {
      case Command::Kind::kAdd: scheduler.add(*command.sequence); break;
      case Command::Kind::kJoin:
        offer_full_blocks(*command.sequence);
        scheduler.join(*command.sequence);
        break;
      case Command::Kind::kCancel: end(command.key, false); break;
      case Command::Kind::kRelease: end(command.key, true); break;
    }
    if (command.sequence) sequences.emplace(command.key, std::move(command.sequence));
  }
  commands.clear();
  refresh();
  tell_notices();
}

// Cancel and release. What is over already, or never was, needs nothing.
void Engine::State::end(const RequestKey& key, bool release) {
  const auto found = sequences.find(key);
  if (found == sequences.end()) return;
  Sequence& sequence = *found->second;
  const bool sender = sequence.role == Role::kSender;
  const bool held = sequence.state == Sequence::State::kHeld;
  if (release ? !sender : held) return;
  if (!held) notices.push_back({.key = key, .finish = FinishReason::kCancelled});
  if (sender && !release && sequence.state == Sequence::State::kRunning) {
    scheduler.hold(sequence);  // a push may be reading its blocks
    return;
  }
  scheduler.finish(sequence);
  forget(key);
}

void Engine::State::announce(const Schedule& schedule) {
  if (listener == nullptr) return;
  for (const Sequence* sequence : schedule.admitted)
    if (sequence->role == Role::kSender)
      listener->on_scheduled(sequence->spec.key, sequence->blocks, sequence->len(), sequence->num_computed);
}

void Engine::State::forward(Batch& batch) {
  step_begin = std::chrono::steady_clock::now();
  pool.step_launched(++step_number);
  executor.forward(batch, [&](int first_layer, int num_layers) { tell_layers(batch, first_layer, num_layers); });
}

void Engine::State::tell_layers(const Batch& batch, int first_layer, int num_layers) {
  if (listener == nullptr) return;
  for (const Chunk& chunk : batch.chunks)
    if (chunk.sequence->role == Role::kSender)
      listener->on_layers_computed({.key = chunk.sequence->spec.key,
                                    .first_layer = first_layer,
                                    .num_layers = num_layers,
                                    .first_token = chunk.first_token,
                                    .tokens = chunk.rows});
}

void Engine::State::publish(Batch& batch) {
  device.wait(device.record());
  pool.step_ended(step_number);
  int64_t sample = 0;
  int64_t decode_rows = 0;
  for (const Chunk& chunk : batch.chunks) {
    Sequence& sequence = *chunk.sequence;
    sequence.num_computed += chunk.rows;
    (chunk.form == Form::kDecode ? counted.decode_tokens_computed : counted.prompt_tokens_computed) += chunk.rows;
    if (chunk.decode) ++decode_rows;
    if (chunk.samples && batch.token(sample) < 0) {
      withdraw_blocks(sequence);
    } else {
      offer_full_blocks(sequence);
    }
    if (chunk.samples) accept_token(sequence, batch, sample++);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - step_begin;
  cost.observe(static_cast<int>(decode_rows), batch.num_rows() - decode_rows, seconds.count());
  counted.step_s = seconds.count();
  ++counted.steps;
  refresh();
  outputs.publish(columns);
  tell_notices();
}

void Engine::State::offer_full_blocks(Sequence& sequence) {
  if (!config.enable_prefix_caching) return;
  const int full = sequence.num_computed / config.block_tokens;
  for (int& next = sequence.num_offered_blocks; next < full; ++next)
    pool.insert(sequence.blocks[next], sequence.hasher.hashes()[next]);
}

// Without a number among its logits there is none in its KV either, from some block on that nobody knows: no prefix hit
// may find any of it, hits of its own included.
void Engine::State::withdraw_blocks(const Sequence& sequence) {
  const std::span hashes = sequence.hasher.hashes();
  pool.withdraw(hashes.first(std::min(hashes.size(), sequence.blocks.size())));
}

void Engine::State::accept_token(Sequence& sequence, const Batch& batch, int64_t sample) {
  const SequenceSpec& spec = sequence.spec;
  const int32_t token = batch.token(sample);
  const int position = sequence.num_output();
  const bool first = position == static_cast<int>(spec.output.size());
  if (token >= 0) sequence.append(token);
  const FinishReason finish = token >= 0 ? finish_of(sequence, config) : FinishReason::kFailed;
  const float logprob =
      spec.num_logprobs < 0 ? std::numeric_limits<float>::quiet_NaN() : batch.host.logprobs.as<const float>()[sample];
  auto& top = columns.top_logprobs;
  const size_t top_begin = top.size();
  const auto* top_tokens = batch.host.top_tokens.as<const int32_t>() + sample * kMaxLogprobs;
  const auto* top_logprobs = batch.host.top_logprobs.as<const float>() + sample * kMaxLogprobs;
  for (int i = 0; i < spec.num_logprobs; ++i)
    if (top_tokens[i] >= 0) top.emplace_back(top_tokens[i], top_logprobs[i]);

  columns.key.push_back(spec.key);
  columns.position.push_back(position);
  columns.token.push_back(token);
  columns.logprob.push_back(logprob);
  columns.finish.push_back(finish);
  columns.num_cached_tokens.push_back(first ? sequence.num_cached : 0);
  columns.num_top_logprobs.push_back(static_cast<int32_t>(top.size() - top_begin));

  if (sequence.role == Role::kSender) {
    notices.push_back({spec.key, finish, true, token, logprob, {top.begin() + top_begin, top.end()}});
    scheduler.hold(sequence);
  } else if (finish != FinishReason::kNone) {
    notices.push_back({.key = spec.key, .finish = finish});
    scheduler.finish(sequence);
    forget(spec.key);
  }
}

void Engine::State::forget(const RequestKey& given) {
  const RequestKey key = given;  // `given` may lie in the sequence
  gone.push_back(key);
  sequences.erase(key);
}

// Publishes demand and load.
void Engine::State::refresh() {
  pool.set_demand(scheduler.demand());
  counted.queued_tokens = scheduler.queued_tokens();
  counted.waiting = scheduler.num_waiting();
  counted.running = scheduler.num_running();
  counted.preemptions = scheduler.num_preemptions();
  counted.prefix_hit_tokens = scheduler.num_hit_tokens();
  std::lock_guard lock(mutex);
  load = counted;
  inbox_tokens = inbox_sequences = 0;
  for (const Command& command : inbox) {  // came since wait()
    if (!command.sequence) continue;
    ++inbox_sequences;
    if (command.kind == Command::Kind::kAdd) inbox_tokens += command.sequence->len();
  }
  for (const RequestKey& key : gone) live.erase(key);
  gone.clear();
}

void Engine::State::tell_notices() {
  for (Notice& notice : notices) {
    if (listener == nullptr) break;
    if (notice.prefilled) {
      listener->on_prefilled(notice.key, notice.token, notice.logprob, std::move(notice.top_logprobs), notice.finish);
    } else {
      listener->on_finished(notice.key, notice.finish);
    }
  }
  notices.clear();
}

void Engine::State::fail(const std::string& message) {
  {
    std::lock_guard lock(mutex);
    failure = message;
  }
  outputs.notify();
  if (listener != nullptr) listener->on_failed(message);
}

}  // namespace rtp_llm
