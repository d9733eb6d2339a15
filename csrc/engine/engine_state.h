// Engine's inside: what its thread owns and what it shares with other threads. Included by engine.cc (other
// threads) and step.cc (the engine thread) only.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/executor.h"
#include "engine/output_queue.h"
#include "engine/scheduler.h"
#include "engine/step_cost.h"

namespace rtp_llm {

// What another thread asks of the engine thread.
struct Command {
  enum class Kind : uint8_t { kAdd, kJoin, kCancel, kRelease, kGiveUpAll };
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

struct Engine::State {
  State(Device& device, Decoder& decoder, EngineConfig given);

  // Any thread.
  void post(Command command);
  std::unique_ptr<Sequence> make_sequence(SequenceSpec spec, Role role) const;
  void wake();  // other threads only; blocks became free
  void stop();

  // A step that was launched and is not published.
  struct InFlight {
    Batch* batch;
    uint64_t number;
    StreamEvent begin, end;  // of its launched work
  };

  // Engine thread, in the order of a step.
  void run();
  bool wait(bool idle);
  bool step();
  bool may_begin();
  void admit();
  void cancel(const RequestKey& key);
  void give_up_all();
  void release(const RequestKey& key);
  void announce(const Schedule& schedule);
  void end_notice();
  void launch(const Schedule& schedule);
  void tell_layers(const Batch& batch, int first_layer, int num_layers);
  void publish(const InFlight& step);
  bool publish_rows(const Chunk& chunk, int32_t token);
  void offer_full_blocks(Sequence& sequence);
  void withdraw_blocks(const Sequence& sequence);
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
  SlotPool slots;
  Scheduler scheduler;
  StepCost cost;
  OutputQueue outputs;
  EngineListener* listener = nullptr;
  std::string numerics_id;

  // Engine thread only.
  std::unordered_map<RequestKey, std::unique_ptr<Sequence>> sequences;
  std::vector<std::unique_ptr<Sequence>> ending;  // over; their keys are free again
  std::vector<InFlight> in_flight;                // oldest first; at most steps_ahead when a step is planned
  std::vector<Command> commands;                  // taken from the inbox
  std::vector<Notice> notices;
  std::vector<RequestKey> gone;  // since the last refresh
  TokenColumns columns;          // of this step
  // A solo sequence that was announced, until its step may begin. Its key: it may be cancelled meanwhile.
  std::optional<std::pair<RequestKey, std::chrono::steady_clock::time_point>> noticed;
  uint64_t step_number = 0;
  const size_t steps_ahead;  // steps that may run on the device while the next one is built
  EngineLoad counted;        // its counters

  mutable std::mutex mutex;  // guards what follows
  std::condition_variable wakeup;
  std::vector<Command> inbox;
  int64_t inbox_tokens = 0;  // of sequences that `load` doesn't include yet
  int32_t inbox_sequences = 0;
  std::unordered_set<RequestKey> live;
  EngineLoad load;
  std::optional<std::string> failure;
  bool woken = false;
  bool pausing = false;
  bool stopping = false;

  std::atomic<std::chrono::steady_clock::time_point> running_since{};  // the step that runs now; zero: none

  std::thread thread;
  std::atomic<std::thread::id> engine_thread{};

  BlockPool::RoomListener room;  // last: ends before what it touches
};

}  // namespace rtp_llm
