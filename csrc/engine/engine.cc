#include "engine/engine.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <limits>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "engine/executor.h"
#include "engine/output_queue.h"
#include "engine/sampling.h"
#include "engine/scheduler.h"

namespace rtp_llm {

namespace {

EngineConfig checked(EngineConfig config) {
  const auto positive = [](const char* name, int64_t value) {
    check(value > 0, name, " must be positive, got ", value);
  };
  positive("max_num_batched_tokens", config.max_num_batched_tokens);
  positive("max_num_seqs", config.max_num_seqs);
  positive("block_tokens", config.block_tokens);
  positive("layers_per_group", config.layers_per_group);
  check(config.max_model_len >= 2, "max_model_len must be at least 2, got ", config.max_model_len);
  check(config.num_kv_blocks >= 0, "num_kv_blocks can't be negative, got ", config.num_kv_blocks);
  check(config.kv_pool_bytes >= 0, "kv_pool_bytes can't be negative, got ", config.kv_pool_bytes);
  check(config.itl_target_s > 0, "itl_target_s must be positive, got ", config.itl_target_s);
  return config;
}

// What another thread asks of the engine thread.
struct Command {
  enum class Kind : uint8_t { kAdd, kJoin, kCancel, kRelease };
  Kind kind;
  RequestKey key;
  std::unique_ptr<Sequence> sequence;  // kAdd, kJoin
};

// What the listener is told after a step.
struct Notice {
  RequestKey key;
  FinishReason finish = FinishReason::kNone;
  bool prefilled = false;  // on_prefilled, else on_finished
  int32_t token = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top_logprobs{};
};

}  // namespace

struct Engine::State {
  State(Device& device, Decoder& decoder, EngineConfig given);

  // Any thread.
  void post(Command command);
  std::unique_ptr<Sequence> make_sequence(SequenceSpec spec, Role role) const;
  void wake();  // other threads only; blocks became free
  void stop();

  // Engine thread, in the order of a step.
  void run();
  bool wait(bool idle);
  bool step();
  void admit();
  void end(const RequestKey& key, bool release_held);
  void announce(const Schedule& schedule);
  void forward(Batch& batch);
  void tell_layers(const Batch& batch, int first_layer, int num_layers);
  void publish(Batch& batch);
  void offer_full_blocks(Sequence& sequence);
  void accept_token(Sequence& sequence, const Batch& batch, int64_t sample);
  void forget(const RequestKey& key);
  void refresh();
  void tell_notices();
  void fail(const std::string& message);

  Device& device;
  Decoder& decoder;
  const EngineConfig config;
  Executor executor;
  BlockPool pool;
  Scheduler scheduler;
  StepCost cost;
  OutputQueue outputs;
  EngineListener* listener = nullptr;
  std::string numerics_id;

  // Engine thread only.
  std::unordered_map<RequestKey, std::unique_ptr<Sequence>> sequences;
  std::vector<Command> commands;  // taken from the inbox
  std::vector<Notice> notices;
  std::vector<RequestKey> gone;  // since the last refresh
  TokenColumns columns;          // of this step
  uint64_t step_number = 0;
  std::chrono::steady_clock::time_point step_begin;
  EngineLoad counted;  // its counters

  mutable std::mutex mutex;  // guards what follows
  std::condition_variable wakeup;
  std::vector<Command> inbox;
  int64_t inbox_tokens = 0;  // of sequences that `load` doesn't include yet
  int32_t inbox_sequences = 0;
  std::unordered_set<RequestKey> live;
  EngineLoad load;
  std::optional<std::string> failure;
  bool woken = false;
  bool stopping = false;

  std::thread thread;
  std::atomic<std::thread::id> engine_thread{};
};

// ---- Start

namespace {

std::string make_numerics_id(Device& device, DType weight_dtype, DType kv_dtype) {
  char digest[17];
  std::snprintf(digest, sizeof digest, "%016llx",
                static_cast<unsigned long long>(device.ops().numerics_digest(weight_dtype, kv_dtype)));
  const char* mode = device.ops().forms_equal() ? "exact" : "fast";
  return concat(device.backend(), "/", device.isa(), "/", name_of(weight_dtype), "/", name_of(kv_dtype), "/tp1/", mode,
                "/", digest);
}

}  // namespace

Engine::State::State(Device& device, Decoder& decoder, EngineConfig given)
    : device(device),
      decoder(decoder),
      config(checked(std::move(given))),
      executor(device, decoder, config, config.max_num_batched_tokens + config.max_num_seqs),
      pool(executor.kv_cache().num_blocks(), config.block_tokens),
      scheduler(config, pool, device.ops().forms_equal()),
      numerics_id(make_numerics_id(device, decoder.config().dtype, config.kv_dtype)) {
  const auto [rows, seconds] = executor.warm_up();
  cost.observe(0, rows, seconds);
  refresh();
  pool.on_room([this] { wake(); });
}

std::unique_ptr<Sequence> Engine::State::make_sequence(SequenceSpec spec, Role role) const {
  check_spec(spec, role, config, decoder.config().vocab_size, pool.num_blocks());
  const std::string salt = block_hash_salt(decoder.model_digest(), spec.cache_salt);
  BlockHasher hasher(salt, config.block_tokens, !device.ops().forms_equal());
  return std::make_unique<Sequence>(std::move(spec), role, std::move(hasher), config.max_model_len);
}

// ---- Other threads

void Engine::State::post(Command command) {
  {
    std::lock_guard lock(mutex);
    if (command.sequence) {
      if (failure) throw Error(concat("the engine has failed: ", *failure));
      check(live.insert(command.key).second, "sequence ", command.key.str(), " is here already");
      ++inbox_sequences;
      if (command.kind == Command::Kind::kAdd) inbox_tokens += command.sequence->len();
    }
    inbox.push_back(std::move(command));
  }
  wakeup.notify_one();
}

void Engine::State::wake() {
  // What the engine thread frees itself, it sees at its next schedule.
  if (std::this_thread::get_id() == engine_thread.load()) return;
  {
    std::lock_guard lock(mutex);
    woken = true;
  }
  wakeup.notify_one();
}

void Engine::State::stop() {
  {
    std::lock_guard lock(mutex);
    stopping = true;
  }
  wakeup.notify_one();
  if (thread.joinable()) thread.join();
}

// ---- The step loop

void Engine::State::run() {
  engine_thread = std::this_thread::get_id();
  try {
    bool idle = false;
    while (wait(idle)) idle = !step();
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
  batch.download(device);
  pool.step_ended(step_number);
  int64_t sample = 0;
  int64_t decode_rows = 0;
  for (const Chunk& chunk : batch.chunks) {
    Sequence& sequence = *chunk.sequence;
    sequence.num_computed += chunk.rows;
    (chunk.form == Form::kDecode ? counted.decode_tokens_computed : counted.prompt_tokens_computed) += chunk.rows;
    if (chunk.decode) ++decode_rows;
    offer_full_blocks(sequence);
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

void Engine::State::accept_token(Sequence& sequence, const Batch& batch, int64_t sample) {
  const SequenceSpec& spec = sequence.spec;
  const int32_t token = batch.host_sampled[sample];
  const bool first = sequence.num_output() == static_cast<int>(spec.output.size());
  sequence.append(token);
  const FinishReason finish = finish_of(sequence, config);
  const float logprob = spec.num_logprobs < 0 ? std::numeric_limits<float>::quiet_NaN() : batch.host_logprobs[sample];
  std::vector<std::pair<int32_t, float>> top;
  for (int64_t i = sample * kMaxLogprobs; i < sample * kMaxLogprobs + spec.num_logprobs; ++i)
    if (batch.host_top_tokens[i] >= 0) top.emplace_back(batch.host_top_tokens[i], batch.host_top_logprobs[i]);

  columns.key.push_back(spec.key);
  columns.position.push_back(sequence.num_output() - 1);
  columns.token.push_back(token);
  columns.logprob.push_back(logprob);
  columns.finish.push_back(finish);
  columns.num_cached_tokens.push_back(first ? sequence.num_cached : 0);
  columns.top_logprobs.push_back(top);

  if (sequence.role == Role::kSender) {
    notices.push_back({spec.key, finish, true, token, logprob, std::move(top)});
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

// ---- Engine

Engine::Engine(Device& device, Decoder& decoder, EngineConfig config)
    : state_(std::make_unique<State>(device, decoder, std::move(config))) {}

Engine::~Engine() { stop(); }

void Engine::set_listener(EngineListener* listener) { state_->listener = listener; }

void Engine::start() {
  check(!state_->thread.joinable(), "the engine runs already");
  state_->thread = std::thread([state = state_.get()] {
    pthread_setname_np(pthread_self(), "rtp-engine");
    state->run();
  });
}

void Engine::stop() { state_->stop(); }

void Engine::validate(const SequenceSpec& spec, Role role) const {
  check_spec(spec, role, state_->config, state_->decoder.config().vocab_size, state_->pool.num_blocks());
}

void Engine::add(SequenceSpec spec, Role role) {
  const RequestKey key = spec.key;
  state_->post({Command::Kind::kAdd, key, state_->make_sequence(std::move(spec), role)});
}

void Engine::join(SequenceSpec spec, std::vector<int32_t> blocks) {
  check(!spec.output.empty(), "join: output must end with the token that the sender sampled, it is empty");
  const RequestKey key = spec.key;
  auto sequence = state_->make_sequence(std::move(spec), Role::kAlone);
  const int block_tokens = state_->config.block_tokens;
  const int stored = sequence->len() - 1;
  const int least = Sequence::blocks_for(stored, block_tokens);
  const int most = Sequence::blocks_for(state_->config.max_model_len, block_tokens);
  const int given = static_cast<int>(blocks.size());
  check(given >= least && given <= most, "join: ", given, " blocks, ", least, " to ", most, " can hold the KV of ",
        stored, " tokens");
  sequence->num_computed = stored;
  sequence->num_clean_blocks = given;
  sequence->admitted_before = true;
  sequence->blocks = std::move(blocks);
  state_->post({Command::Kind::kJoin, key, std::move(sequence)});
}

void Engine::cancel(const RequestKey& key) { state_->post({Command::Kind::kCancel, key, nullptr}); }

void Engine::release(const RequestKey& key) { state_->post({Command::Kind::kRelease, key, nullptr}); }

TokenColumns Engine::take_outputs() { return state_->outputs.take(); }

void Engine::set_output_notify(std::function<void()> notify) { state_->outputs.set_notify(std::move(notify)); }

std::optional<std::string> Engine::failure() const {
  std::lock_guard lock(state_->mutex);
  return state_->failure;
}

EngineLoad Engine::load() const {
  EngineLoad load;
  {
    std::lock_guard lock(state_->mutex);
    load = state_->load;
    load.queued_tokens += state_->inbox_tokens;
    load.waiting += state_->inbox_sequences;
  }
  load.blocks = state_->pool.counts();
  return load;
}

void Engine::check_idle() const {
  size_t sequences;
  {
    std::lock_guard lock(state_->mutex);
    sequences = state_->live.size();
  }
  const BlockCounts blocks = state_->pool.counts();
  const auto require_none = [](const char* what, int64_t count) {
    if (count != 0) throw Error(concat("the engine is not idle: ", count, " ", what));
  };
  require_none("sequences", static_cast<int64_t>(sequences));
  require_none("blocks referenced", blocks.referenced);
  require_none("blocks granted", blocks.granted);
  require_none("blocks quarantined", blocks.quarantined);
  require_none("blocks gated", blocks.gated);
  state_->pool.check_integrity();
}

BlockPool& Engine::block_pool() { return state_->pool; }
const KvLayout& Engine::kv_layout() const { return state_->executor.kv_cache().layout(); }
void* Engine::kv_pool_base() const { return state_->executor.kv_cache().base(); }
int64_t Engine::kv_pool_bytes() const { return state_->executor.kv_cache().bytes(); }
int Engine::kv_pool_fd() const { return state_->executor.kv_cache().shared_fd(); }
std::string Engine::salt(const SequenceSpec& spec) const {
  return block_hash_salt(state_->decoder.model_digest(), spec.cache_salt);
}
const EngineConfig& Engine::config() const { return state_->config; }
std::string Engine::numerics_id() const { return state_->numerics_id; }

}  // namespace rtp_llm
