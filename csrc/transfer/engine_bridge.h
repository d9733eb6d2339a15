// EngineBridge: the engine as the handover machines see it. What it says becomes their events, what they want of it is
// done, and what it would refuse is known before it is asked.
//
// Thread rule: the listener's methods on the engine thread, which they only post from; the rest on the transfer thread.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "handover/actions.h"
#include "transfer/engine_port.h"
#include "transfer/event_queue.h"
#include "transfer/trace.h"

namespace rtp_llm {

// What the transfer thread does next. Layers are apart as they come once a layer group: posting them allocates nothing.
using TransferTask = std::function<void()>;
using TransferInbox = EventQueue<std::variant<ComputedLayers, TransferTask>>;

class EngineBridge : public EngineListener {
 public:
  // `handle` takes events, on the transfer thread. REQUIRES: engine, inbox and trace outlive it.
  EngineBridge(EnginePort& engine, TransferInbox& inbox, Trace& trace, std::function<void(Event)> handle)
      : engine_(engine), inbox_(inbox), trace_(trace), handle_(std::move(handle)) {}

  void on_scheduled(const RequestKey& key, std::vector<int32_t> blocks, int tokens, int cached_tokens) override;
  void on_layers_computed(const ComputedLayers& piece) override { inbox_.push(piece); }
  void on_prefilled(const RequestKey& key, int32_t token, float logprob,
                    std::vector<std::pair<int32_t, float>> top_logprobs, FinishReason finish) override;
  void on_finished(const RequestKey& key, FinishReason finish) override;
  void on_failed(const std::string& message) override;

  // Why the engine could never run it; nullopt: it could.
  std::optional<message::Failed> objection(const SequenceSpec& spec, Role role) const;
  // A request that this engine can't run ends with event::Rejected: the machines' requests were made elsewhere.
  void enqueue(const action::EnqueueSequence& action);
  void join(const action::JoinSequence& action);
  void cancel(const action::CancelSequence& action) { engine_.cancel(action.key); }
  void release(const action::ReleaseBlocks& action);

 private:
  void reject(const RequestKey& key, const InvalidArgument& error);

  struct Start {  // of a kSender sequence
    int32_t position = 0;
    int32_t cached_tokens = 0;
    double added_at = 0, planned_at = 0;
  };

  EnginePort& engine_;
  TransferInbox& inbox_;
  Trace& trace_;
  const std::function<void(Event)> handle_;
  std::unordered_map<RequestKey, Start> starts_;  // the transfer thread's
};

}  // namespace rtp_llm
