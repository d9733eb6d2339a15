// What other threads see of an engine: construction, commands, reading.
#include "engine/engine.h"

#include <pthread.h>

#include <cstdio>

#include "device/numerics_digest.h"
#include "engine/engine_state.h"
#include "engine/sampling.h"
#include "transfer/clock.h"

namespace rtp_llm {

namespace {

EngineConfig checked(EngineConfig config) {
  const auto positive = [](const char* name, int64_t value) {
    check(value > 0, name, " must be positive, got ", value);
  };
  positive("max_num_batched_tokens", config.max_num_batched_tokens);
  positive("max_num_seqs", config.max_num_seqs);
  positive("block_tokens", config.block_tokens);
  positive("layers_per_message", config.layers_per_message);
  check(config.max_model_len >= 2, "max_model_len must be at least 2, got ", config.max_model_len);
  check(config.num_kv_blocks >= 0, "num_kv_blocks can't be negative, got ", config.num_kv_blocks);
  check(config.kv_pool_bytes >= 0, "kv_pool_bytes can't be negative, got ", config.kv_pool_bytes);
  check(config.itl_target_s > 0, "itl_target_s must be positive, got ", config.itl_target_s);
  return config;
}

}  // namespace

// ---- Start

namespace {

std::string make_numerics_id(Device& device, DType weight_dtype, DType kv_dtype) {
  char digest[17];
  std::snprintf(digest, sizeof digest, "%016llx",
                static_cast<unsigned long long>(numerics_digest(device, weight_dtype, kv_dtype)));
  const char* mode = device.ops().forms_equal() ? "exact" : "fast";
  return concat(device.backend(), "/", device.isa(), "/", name_of(weight_dtype), "/", name_of(kv_dtype), "/tp1/", mode,
                "/", digest);
}

}  // namespace

Engine::State::State(Device& device, Decoder& decoder, EngineConfig given)
    : device(device),
      decoder(decoder),
      config(checked(std::move(given))),
      executor(device, decoder, config),
      pool(executor.kv_cache().num_blocks(), config.block_tokens),
      slots(config.max_num_seqs),
      scheduler(config, pool, slots, device.ops().forms_equal()),
      numerics_id(make_numerics_id(device, decoder.config().dtype, config.kv_dtype)),
      steps_ahead(device.runs_behind() ? 1 : 0) {
  in_flight.reserve(steps_ahead + 1);
  const auto [rows, seconds] = executor.warm_up();
  cost.observe(0, rows, seconds);
  refresh();
  room = pool.on_room([this] { wake(); });
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
  auto sequence = state_->make_sequence(std::move(spec), role);
  sequence->added_at = monotonic_seconds();
  state_->post({Command::Kind::kAdd, key, std::move(sequence)});
}

void Engine::join(SequenceSpec spec, std::vector<int32_t> blocks) {
  check(!spec.output.empty(), "join: output must end with the token that the sender sampled, it is empty");
  const RequestKey key = spec.key;
  auto sequence = state_->make_sequence(std::move(spec), Role::kAlone);
  const int block_tokens = state_->config.block_tokens;
  const int stored = sequence->len() - 1;
  const int least = blocks_for(stored, block_tokens);
  const int most = blocks_for(state_->config.max_model_len, block_tokens);
  const int given = static_cast<int>(blocks.size());
  check(given >= least && given <= most, "join: ", given, " blocks, ", least, " to ", most, " can hold the KV of ",
        stored, " tokens");
  sequence->num_launched = sequence->num_computed = stored;
  sequence->num_clean_blocks = given;
  sequence->admitted_before = true;
  sequence->blocks.assign(blocks.begin(), blocks.end());  // into memory for all that it may ever have
  state_->post({Command::Kind::kJoin, key, std::move(sequence)});
}

void Engine::pause() {
  const std::lock_guard lock(state_->mutex);
  state_->pausing = state_->woken = true;
  state_->wakeup.notify_one();
}

void Engine::resume() {
  const std::lock_guard lock(state_->mutex);
  state_->pausing = state_->load.paused = false;
  state_->woken = true;
  state_->wakeup.notify_one();
}

void Engine::give_up_all() { state_->post({Command::Kind::kGiveUpAll, {}, nullptr}); }

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
  const auto since = state_->running_since.load();
  if (since != std::chrono::steady_clock::time_point())
    load.step_running_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
  load.slots = state_->slots.counts();
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
  require_none("slots taken", state_->slots.counts().taken);
  state_->pool.check_integrity();
}

Device& Engine::device() { return state_->device; }
BlockPool& Engine::block_pool() { return state_->pool; }
SlotPool& Engine::slot_pool() { return state_->slots; }
const KvLayout& Engine::kv_layout() const { return state_->executor.kv_cache().layout(); }
void* Engine::kv_pool_base() const { return state_->executor.kv_cache().base(); }
int64_t Engine::kv_pool_bytes() const { return state_->executor.kv_cache().bytes(); }
std::string Engine::salt(const SequenceSpec& spec) const {
  return block_hash_salt(state_->decoder.model_digest(), spec.cache_salt);
}
int64_t Engine::vocab_size() const { return state_->decoder.config().vocab_size; }
const EngineConfig& Engine::config() const { return state_->config; }
std::string Engine::numerics_id() const { return state_->numerics_id; }

}  // namespace rtp_llm
