#include "transfer/kv_transfer.h"

#include <pthread.h>

#include <algorithm>
#include <future>

#include "transfer/clock.h"

namespace rtp_llm {
namespace {

// How often the device is asked for layers that are launched and not stored yet.
constexpr Seconds kLaunchedLayersLook = 50e-6;

HandoverConfig make_handover_config(const EnginePort& engine, const KvTransferConfig& config) {
  const KvGroup& group = engine.kv_layout().groups.at(0);
  return {.times = config.times,
          .num_layers = static_cast<int>(group.layers.size()),
          .layers_per_message = engine.layers_per_message(),
          .block_tokens = group.block_tokens,
          .token_layer_bytes = kv_token_layer_bytes(group),
          .max_push_tokens = config.max_push_tokens / group.block_tokens * group.block_tokens,
          .vocab_size = engine.vocab_size()};
}

}  // namespace

KvTransfer::KvTransfer(Device& device, EnginePort& engine, WorkerKey self, KvTransferConfig config)
    : device_(device),
      engine_(engine),
      self_(std::move(self)),
      config_(std::move(config)),
      handover_config_(make_handover_config(engine, config_)),
      grants_(device, engine),
      handover_(self_, handover_config_, grants_),
      figures_(config_.trace_entries),
      bridge_(engine, inbox_, figures_.trace(), [this](Event event) { handle(std::move(event)); }),
      data_(device, engine, config_.transport, handover_config_.max_push_tokens, figures_.trace(),
            {.accept =
                 [this](const WorkerKey& from, const KvMessageHeader& header, uint64_t bytes) {
                   auto answer = handover_.accept(from, header, bytes, now(), actions_);
                   if (const auto* to = std::get_if<Destination>(&answer)) figures_.accepted(to->key, now());
                   return answer;
                 },
             .tell = [this](Event event) { events_.push_back(std::move(event)); },
             .want_endpoint = [this](const WorkerKey& receiver) { outbox_.push(outgoing::WantEndpoint{receiver}); },
             .warn = [this](const std::string& text) { outbox_.push(outgoing::Warning{text}); }}),
      wakeup_({inbox_.fd(), data_.transport().event_fd()}) {
  check(handover_config_.max_push_tokens > 0, "max_push_tokens ", config_.max_push_tokens, " is less than a block of ",
        handover_config_.block_tokens, " tokens");
  address_ = data_.transport().address();
  engine_.set_listener(&bridge_);
  room_ = engine_.block_pool().on_room([this] {
    if (wants_room_.exchange(false)) inbox_.push([this] { handle(event::RoomChanged{}); });
  });
}

KvTransfer::~KvTransfer() {
  engine_.stop();
  stop();
}

// ---- Any thread

void KvTransfer::start() {
  std::lock_guard lock(mutex_);
  check(!running_ && !thread_.joinable(), "the transfer thread runs already");
  running_ = true;
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "rtp-transfer");
    run();
  });
}

void KvTransfer::stop() {
  inbox_.push([this] { stopping_ = true; });
  if (thread_.joinable()) thread_.join();
}

void KvTransfer::connect(const WorkerKey& receiver, const std::string& address, uint64_t nonce) {
  inbox_.push([this, receiver, address, nonce] { data_.connect(receiver, address, nonce); });
}

void KvTransfer::post(Event event) {
  {
    std::lock_guard lock(mutex_);
    if (fault_) throw Error(concat("the transfer thread has ended: ", *fault_));
  }
  inbox_.push([this, event = std::move(event)] { handle(event); });
}

void KvTransfer::post_outputs(const TokenColumns& columns) {
  std::vector<event::Output> outputs(columns.key.size());
  auto top = columns.top_logprobs.begin();
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto top_end = top + columns.num_top_logprobs[i];
    outputs[i] = {.key = columns.key[i],
                  .token = {.position = columns.position[i],
                            .token = columns.token[i],
                            .logprob = columns.logprob[i],
                            .finish = columns.finish[i],
                            .num_cached_tokens = columns.num_cached_tokens[i],
                            .times = columns.times[i],
                            .top_logprobs = {top, top_end}}};
    top = top_end;
  }
  inbox_.push([this, outputs = std::move(outputs)] {
    for (const event::Output& output : outputs) handle(output);
  });
}

void KvTransfer::ask(const Task& task) {
  auto done = std::make_shared<std::promise<void>>();  // the task's alone: one that is dropped breaks the promise
  std::future<void> answered = done->get_future();
  std::exception_ptr failed;  // the asker's: it reads and destroys it
  Task answer = [done = std::move(done), &task, &failed] {
    try {
      task();
    } catch (...) {
      failed = std::current_exception();
    }
    done->set_value();
  };
  {
    std::lock_guard lock(mutex_);
    if (running_)
      inbox_.push(std::move(answer));
    else
      answer();
  }
  answered.get();
  if (failed) std::rethrow_exception(failed);
}

KvTransferCounts KvTransfer::counts() {
  KvTransferCounts counts;
  ask([&] { counts = {figures_.totals(), handover_.counts(), data_.counts()}; });
  return counts;
}

std::vector<TraceEntry> KvTransfer::trace(const std::optional<RequestKey>& key) {
  std::vector<TraceEntry> entries;
  ask([&] { entries = figures_.trace().entries(key); });
  return entries;
}

void KvTransfer::check_idle() {
  ask([&] {
    if (!handover_.idle()) {
      const HandoverCounts counts = handover_.counts();
      const SenderCounts& s = counts.sender;
      const ReceiverCounts& r = counts.receiver;
      throw Error(concat("the handover is not idle: sender queued ", s.queued, ", computing ", s.computing,
                         ", pushing ", s.pushing, ", awaiting ", s.awaiting, ", committing ", s.committing, ", local ",
                         s.local, ", flushing ", s.flushing, ", pushes ", s.pushes_in_flight, ", source blocks ",
                         s.source_blocks, "; receiver queued ", r.queued, ", granted ", r.granted, ", verifying ",
                         r.verifying, ", running ", r.running, ", live grants ", r.live_grants, ", quarantined ",
                         r.quarantined_grants, ", receives ", r.receives_in_flight));
    }
    const DataPlaneCounts counts = data_.counts();
    check(counts.pushes_in_flight == 0 && counts.receives_in_flight == 0 && counts.transport.sends_outstanding == 0 &&
              counts.transport.receives_outstanding == 0,
          "the data plane is not idle: pushes ", counts.pushes_in_flight, ", receives ", counts.receives_in_flight,
          ", sends outstanding ", counts.transport.sends_outstanding, ", receives outstanding ",
          counts.transport.receives_outstanding);
  });
}

// ---- The transfer thread

void KvTransfer::run() {
  try {
    while (!stopping_)
      if (!step()) wait();
  } catch (const std::exception& error) {
    fail(error.what());
  }
  // Whoever waits for an answer gets one, also behind what has failed; events do nothing any more.
  stopping_ = true;
  perform_what_is_left();
  {
    std::lock_guard lock(mutex_);
    running_ = false;  // from here on ask() answers by itself
    inbox_.take(taken_);
  }
  perform_what_is_left();
}

void KvTransfer::perform_what_is_left() {
  for (bool all = false; !all;) {
    try {
      perform_taken();
      all = true;
    } catch (const std::exception& error) {
      fail(error.what());
    }
  }
}

// The first fault is said, what follows from it isn't.
void KvTransfer::fail(const std::string& text) {
  {
    std::lock_guard lock(mutex_);
    if (fault_) return;
    fault_ = text;
  }
  outbox_.push(outgoing::Fault{text});
}

void KvTransfer::perform(const ComputedLayers& piece) {
  if (!launched_.empty() || !device_.done(piece.ready)) return launched_.push_back(piece);
  hand_on(piece, piece.launched_at);
}

// What the engine says of a step, it says after its layers: those are done then, and come first.
void KvTransfer::perform(const Task& task) {
  hand_on_stored();
  task();
}

// Layers that have been stored since the last look. False: none.
bool KvTransfer::hand_on_stored() {
  bool any = false;
  for (; !launched_.empty() && device_.done(launched_.front().ready); any = true) {
    const ComputedLayers piece = launched_.front();
    launched_.pop_front();
    hand_on(piece, now());
  }
  return any;
}

void KvTransfer::hand_on(const ComputedLayers& piece, Seconds stored_at) {
  figures_.trace().add({.time = stored_at,
                        .key = piece.key,
                        .point = TracePoint::kLayersComputed,
                        .first_layer = piece.first_layer,
                        .num_layers = piece.num_layers,
                        .first_token = piece.first_token,
                        .tokens = piece.tokens});
  handle(event::LayersComputed{piece.key, piece.first_layer, piece.num_layers, piece.first_token, piece.tokens});
}

// In order, each once: what throws is behind it when the next call goes on.
void KvTransfer::perform_taken() {
  while (next_taken_ < taken_.size()) std::visit([this](const auto& one) { perform(one); }, taken_[next_taken_++]);
  taken_.clear();
  next_taken_ = 0;
}

bool KvTransfer::step() {
  inbox_.take(taken_);
  bool any = !taken_.empty();
  perform_taken();
  any |= hand_on_stored();
  any |= data_.transport().progress(now());
  if (!actions_.empty()) perform(std::exchange(actions_, {}));
  if (const auto deadline = handover_.next_deadline(); !events_.empty() || (deadline && *deadline <= now())) {
    handle(event::Tick{});
    any = true;
  }
  return any;
}

void KvTransfer::wait() {
  std::optional<Seconds> deadline = handover_.next_deadline();
  if (const auto transport = data_.transport().next_deadline(); transport && (!deadline || *transport < *deadline))
    deadline = transport;
  if (!launched_.empty()) {
    const Seconds look = now() + kLaunchedLayersLook;
    if (!deadline || look < *deadline) deadline = look;
  }
  if (data_.transport().arm()) wakeup_.wait(deadline);
}

Seconds KvTransfer::now() { return last_now_ = std::max(last_now_, monotonic_seconds()); }

// Actions may bring new events up at once (a push without an endpoint): they wait until the first is done.
void KvTransfer::handle(Event event) {
  if (stopping_) return;
  events_.push_back(std::move(event));
  if (handling_) return;
  handling_ = true;
  for (size_t i = 0; i < events_.size(); ++i) {
    Event next = std::move(events_[i]);
    complete(next);
    if (const auto* from = std::get_if<event::FromReceiver>(&next)) figures_.heard(from->body, now());
    if (const auto* lost = std::get_if<event::ReceiverLost>(&next)) data_.abandon(lost->receiver);
    Actions actions;
    wants_room_ = true;  // before the pool is asked, so no room is missed
    handover_.handle(next, now(), actions);
    perform(std::move(actions));
  }
  events_.clear();
  handling_ = false;
  if (!handover_.receiver().has_queue()) wants_room_ = false;
}

// Adds what the engine knows: the queue's length as it is now, and whether it could ever run the request. A sender must
// be able to run its part, a receiver what will join: with the token that the sender samples.
void KvTransfer::complete(Event& event) const {
  if (auto* from = std::get_if<event::FromSender>(&event)) {
    const auto* reserve = std::get_if<message::Reserve>(&from->body);
    if (!reserve) return;
    SequenceSpec joining = *reserve->spec;
    joining.output.push_back(0);
    if (auto failed = bridge_.objection(joining, Role::kAlone)) from->invalid = std::move(failed->message);
    return;
  }
  auto* from = std::get_if<event::FromRouter>(&event);
  const auto* submit = from ? std::get_if<message::Submit>(&from->body) : nullptr;
  if (!submit) return;
  from->queued_tokens = engine_.queued_tokens();
  from->max_queued_tokens = std::min(from->max_queued_tokens, config_.max_queued_tokens);
  if (from->invalid) return;
  const Role role = runs_alone(*submit, self_) ? Role::kAlone : Role::kSender;
  from->invalid = bridge_.objection(*submit->spec, role);
}

void KvTransfer::perform(Actions actions) {
  for (const Action& action : actions) std::visit([this](const auto& one) { perform(one); }, action);
}

void KvTransfer::perform(const action::ToRouter& action) { outbox_.push(action); }

void KvTransfer::perform(const action::ToSender& action) {
  figures_.said(action.body, now());
  outbox_.push(action);
}

void KvTransfer::perform(const action::ToReceiver& action) {
  figures_.said(action.body, now());
  outbox_.push(action);
}

void KvTransfer::perform(const action::Meet& action) { outbox_.push(action); }

void KvTransfer::perform(const action::EnqueueSequence& action) { bridge_.enqueue(action); }

void KvTransfer::perform(const action::JoinSequence& action) {
  figures_.joined(action, [this](const RequestKey& key) { return handover_.receiver().knows(key); }, now());
  bridge_.join(action);
}

void KvTransfer::perform(const action::CancelSequence& action) { bridge_.cancel(action); }

void KvTransfer::perform(const action::ReleaseBlocks& action) {
  figures_.released(action.key);
  bridge_.release(action);
}

void KvTransfer::perform(const action::PushLayers& action) {
  figures_.posted(action.key, now());
  data_.push(action);
}

void KvTransfer::perform(const action::CloseEndpoint& action) { data_.close(action.peer, action.direction); }

}  // namespace rtp_llm
