// The engine thread: the step loop, in the order of a step.
#include <algorithm>
#include <chrono>
#include <limits>
#include <span>

#include "engine/engine_state.h"
#include "engine/sampling.h"
#include "transfer/clock.h"

namespace rtp_llm {

void Engine::State::run() {
  engine_thread = std::this_thread::get_id();
  try {
    bool idle = true;
    while (wait(idle)) {
      running_since = std::chrono::steady_clock::now();
      idle = !step();
      running_since = std::chrono::steady_clock::time_point();
    }
  } catch (const std::exception& error) {
    fail(error.what());
  }
  try {
    device.synchronize();  // what is launched reads batches and blocks
  } catch (const std::exception&) {
    // The device's fault was thrown before and is told, or the engine has stopped anyway.
  }
}

bool Engine::State::step() {
  admit();
  end_notice();
  bool launched = false;
  if (may_begin()) {
    const Schedule& schedule = scheduler.schedule(cost);
    announce(schedule);
    launched = !schedule.empty();
    if (launched) launch(schedule);
  }
  outputs.publish(columns);
  if (in_flight.empty()) return false;
  if (launched && in_flight.size() <= steps_ahead) return true;
  publish(in_flight.front());
  in_flight.erase(in_flight.begin());
  return true;
}

// Whether a step may begin: not in a pause, which stands when all launched ones have ended.
bool Engine::State::may_begin() {
  std::lock_guard lock(mutex);
  load.paused = pausing && in_flight.empty();
  return !pausing;
}

// Takes the inbox; when idle, blocks until there is something in it or blocks became free. False: stop.
bool Engine::State::wait(bool idle) {
  std::unique_lock lock(mutex);
  const auto something = [&] { return stopping || woken || !inbox.empty(); };
  if (idle && noticed) {
    wakeup.wait_until(lock, noticed->second, something);
  } else if (idle) {
    wakeup.wait(lock, something);
  }
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
      case Command::Kind::kCancel: cancel(command.key); break;
      case Command::Kind::kRelease: release(command.key); break;
      case Command::Kind::kGiveUpAll: give_up_all(); break;
    }
    if (command.sequence) sequences.emplace(command.key, std::move(command.sequence));
  }
  commands.clear();
  refresh();
  tell_notices();
}

// What is over already, or never was, needs nothing; nor does a sender that is held: release() ends it.
void Engine::State::cancel(const RequestKey& key) {
  const auto found = sequences.find(key);
  if (found == sequences.end() || found->second->state == Sequence::State::kHeld) return;
  Sequence& sequence = *found->second;
  notices.push_back({.key = key, .finish = FinishReason::kCancelled});
  if (sequence.role == Role::kSender && sequence.state == Sequence::State::kRunning)
    return scheduler.hold(sequence);  // a push may be reading its blocks
  scheduler.finish(sequence);
  forget(key);
}

void Engine::State::give_up_all() {
  std::vector<RequestKey> keys;
  for (const auto& [key, sequence] : sequences) keys.push_back(key);
  std::sort(keys.begin(), keys.end());
  for (const RequestKey& key : keys) cancel(key);
}

void Engine::State::release(const RequestKey& key) {
  const auto found = sequences.find(key);
  if (found == sequences.end() || found->second->role != Role::kSender) return;
  Sequence& sequence = *found->second;
  if (sequence.state != Sequence::State::kHeld) notices.push_back({.key = key, .finish = FinishReason::kCancelled});
  scheduler.finish(sequence);
  forget(key);
}

void Engine::State::announce(const Schedule& schedule) {
  if (schedule.announced != nullptr) {
    const RequestKey& key = schedule.announced->spec.key;
    columns.started.push_back(key);
    noticed = {key, std::chrono::steady_clock::now() + kStartedNotice};
  }
  for (Sequence* sequence : schedule.admitted)
    if (sequence->planned_at == 0) sequence->planned_at = monotonic_seconds();
  if (listener == nullptr) return;
  for (const Sequence* sequence : schedule.admitted)
    if (sequence->role == Role::kSender)
      listener->on_scheduled(sequence->spec.key, sequence->blocks, sequence->len(), sequence->num_computed);
}

// A step that ends this process leaves the notice of it behind.
void Engine::State::end_notice() {
  if (!noticed || std::chrono::steady_clock::now() < noticed->second) return;
  const auto found = sequences.find(noticed->first);
  if (found != sequences.end()) found->second->notice = Sequence::Notice::kOver;
  noticed.reset();
}

void Engine::State::launch(const Schedule& schedule) {
  const StreamEvent begin = device.record();
  pool.step_launched(++step_number);
  Batch& batch = executor.prepare(schedule);
  executor.forward(batch, [&](int first_layer, int num_layers) { tell_layers(batch, first_layer, num_layers); });
  executor.sample(batch);
  in_flight.push_back({.batch = &batch, .number = step_number, .begin = begin, .end = device.record()});
}

void Engine::State::tell_layers(const Batch& batch, int first_layer, int num_layers) {
  if (listener == nullptr) return;
  const double launched_at = monotonic_seconds();
  StreamEvent ready;
  for (const Chunk& chunk : batch.chunks) {
    if (chunk.sequence->role != Role::kSender) continue;
    if (ready.number == 0) ready = device.record();
    listener->on_layers_computed({.key = chunk.sequence->spec.key,
                                  .first_layer = first_layer,
                                  .num_layers = num_layers,
                                  .first_token = chunk.first_token,
                                  .tokens = chunk.rows,
                                  .launched_at = launched_at,
                                  .ready = ready});
  }
}

namespace {

void count(const Chunk& chunk, StepSample& step) {
  const int64_t first = chunk.first_token, rows = chunk.rows;
  const int64_t pairs = rows * first + rows * (rows + 1) / 2;
  (chunk.decode ? step.decode_rows : step.prefill_rows) += rows;
  (chunk.decode ? step.context_tokens : step.attention_pairs) += pairs;
}

}  // namespace

// The one wait of a step.
void Engine::State::publish(const InFlight& step) {
  device.wait(step.end);
  pool.step_ended(step.number);
  const Batch& batch = *step.batch;
  int64_t sample = 0;
  StepSample measured;
  for (const Chunk& chunk : batch.chunks) {
    Sequence& sequence = *chunk.sequence;
    (chunk.form == Form::kDecode ? counted.decode_tokens_computed : counted.prompt_tokens_computed) += chunk.rows;
    count(chunk, measured);
    const int32_t token = chunk.samples ? batch.token(sample) : 0;
    if (publish_rows(chunk, token)) accept_token(sequence, batch, sample);
    sample += chunk.samples;
  }
  measured.seconds = device.seconds_between(step.begin, step.end);
  cost.observe(static_cast<int>(measured.decode_rows), measured.prefill_rows, measured.seconds);
  counted.step = measured;
  ++counted.steps;
  refresh();
  outputs.publish(columns);
  tell_notices();
}

// Counts the rows of one sequence as computed; `token` is what they sampled, if they did. True: it is the sequence's
// next token. Not if that was ended or cancelled since the launch.
bool Engine::State::publish_rows(const Chunk& chunk, int32_t token) {
  Sequence& sequence = *chunk.sequence;
  const bool stored = scheduler.ended(chunk);
  if (token < 0) withdraw_blocks(sequence);
  if (sequence.state == Sequence::State::kEnding) return false;
  if (stored && token >= 0) offer_full_blocks(sequence);
  return chunk.samples && sequence.state != Sequence::State::kHeld;
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
  // Of one that gave its blocks back meanwhile, what the cache was offered.
  const size_t known = std::max(sequence.blocks.size(), static_cast<size_t>(sequence.num_offered_blocks));
  pool.withdraw(hashes.first(std::min(hashes.size(), known)));
}

namespace {

// Of one that joined none: it came with its first token.
FirstTimes times_of(const Sequence& sequence) {
  if (sequence.planned_at == 0) return {};
  return {.queued = static_cast<float>(sequence.planned_at - sequence.added_at),
          .prefill = static_cast<float>(monotonic_seconds() - sequence.planned_at)};
}

}  // namespace

void Engine::State::accept_token(Sequence& sequence, const Batch& batch, int64_t sample) {
  const SequenceSpec& spec = sequence.spec;
  const int32_t logprobs = spec.sampling.logprobs;
  const int32_t token = batch.token(sample);
  const int position = sequence.num_output();
  const bool first = position == static_cast<int>(spec.output.size());
  if (token >= 0) sequence.append(token);
  const FinishReason finish = token >= 0 ? finish_of(sequence, config) : FinishReason::kFailed;
  const float logprob =
      logprobs < 0 ? std::numeric_limits<float>::quiet_NaN() : batch.host.logprobs.as<const float>()[sample];
  const bool sender = sequence.role == Role::kSender;
  std::vector<std::pair<int32_t, float>> sender_top;
  auto& top = sender ? sender_top : columns.top_logprobs;
  const size_t top_begin = top.size();
  const auto* top_tokens = batch.host.top_tokens.as<const int32_t>() + sample * kMaxLogprobs;
  const auto* top_logprobs = batch.host.top_logprobs.as<const float>() + sample * kMaxLogprobs;
  for (int i = 0; i < logprobs; ++i)
    if (top_tokens[i] >= 0) top.emplace_back(top_tokens[i], top_logprobs[i]);

  if (sender) {
    notices.push_back({spec.key, finish, true, token, logprob, std::move(sender_top)});
    scheduler.hold(sequence);
    return;
  }
  columns.key.push_back(spec.key);
  columns.position.push_back(position);
  columns.token.push_back(token);
  columns.logprob.push_back(logprob);
  columns.finish.push_back(finish);
  columns.num_cached_tokens.push_back(first ? sequence.num_cached : 0);
  columns.times.push_back(first ? times_of(sequence) : FirstTimes());
  columns.num_top_logprobs.push_back(static_cast<int32_t>(top.size() - top_begin));

  if (finish != FinishReason::kNone) {
    notices.push_back({.key = spec.key, .finish = finish});
    scheduler.finish(sequence);
    forget(spec.key);
  }
}

// Frees the key of what the scheduler has finished. The sequence stays until the next refresh, and while launched steps
// have rows of it.
void Engine::State::forget(const RequestKey& given) {
  const RequestKey key = given;  // `given` may lie in the sequence
  gone.push_back(key);
  const auto found = sequences.find(key);
  ending.push_back(std::move(found->second));
  sequences.erase(found);
}

// Publishes demand and load; what is over and in no launched step is gone.
void Engine::State::refresh() {
  std::erase_if(ending, [](const auto& sequence) { return sequence->steps_in_flight == 0; });
  pool.set_demand(scheduler.demand());
  counted.queued_tokens = scheduler.queued_tokens();
  counted.waiting = scheduler.num_waiting();
  counted.running = scheduler.num_running();
  counted.slots_awaited = scheduler.num_without_slot();
  counted.preemptions = scheduler.num_preemptions();
  counted.prefix_hit_tokens = scheduler.num_hit_tokens();
  std::lock_guard lock(mutex);
  counted.paused = load.paused;
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
