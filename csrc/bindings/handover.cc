// Handover: messages, events and actions as plain objects (submodules `message`, `event`, `action`, as the
// namespaces of csrc/handover), and the machines themselves.
//
// Objects are made with keywords, all optional: message.Commit(key=k, grant=3). FinishReason and
// AttachRole are the wire's integers.
#include "handover/handover.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <functional>
#include <string>
#include <type_traits>
#include <utility>

#include "bindings/bindings.h"
#include "handover/contract.h"

namespace py = pybind11;

namespace rtp_llm {

namespace {

template <class T>
constexpr bool is_wire_enum = std::is_same_v<T, FinishReason> || std::is_same_v<T, message::AttachRole>;

template <class T>
T from_python(const py::handle& value) {
  if constexpr (std::is_same_v<T, message::SpecPtr>) {
    return std::make_shared<const SequenceSpec>(value.cast<const SequenceSpec&>());
  } else if constexpr (is_wire_enum<T>) {
    return static_cast<T>(value.cast<int>());
  } else {
    return value.cast<T>();
  }
}

template <class T>
py::object to_python(const T& value, const py::object& owner) {
  if constexpr (std::is_same_v<T, message::SpecPtr>) {
    if (!value) return py::none();
    return py::cast(*value, py::return_value_policy::reference_internal, owner);
  } else if constexpr (is_wire_enum<T>) {
    return py::int_(static_cast<int>(value));
  } else {
    return py::cast(value);
  }
}

template <class Struct, class T>
struct Field {
  const char* name;
  T Struct::* member;
};
template <class Struct, class T>
Field(const char*, T Struct::*) -> Field<Struct, T>;

// A plain struct: keyword constructor, readable fields, a repr that shows them.
template <class Struct, class... Fields>
void bind_struct(py::module_& module, const char* name, Fields... fields) {
  py::class_<Struct> bound(module, name);
  bound.def(py::init([name, fields...](const py::kwargs& values) {
    Struct made{};
    for (const auto& [key, value] : values) {
      const std::string wanted = py::str(key);
      [[maybe_unused]] const auto set = [&, &value = value](const auto& field) {
        if (wanted != field.name) return false;
        using T = std::remove_cvref_t<decltype(made.*(field.member))>;
        made.*(field.member) = from_python<T>(value);
        return true;
      };
      if (!(set(fields) || ...)) throw py::type_error(std::string(name) + " has no field " + wanted);
    }
    return made;
  }));
  (bound.def_property_readonly(
       fields.name,
       [fields](const py::object& self) { return to_python(self.cast<const Struct&>().*(fields.member), self); }),
   ...);
  bound.def("__repr__", [name, fields...](const py::object& self) {
    std::string text;
    ((text += (text.empty() ? "" : ", ") + std::string(fields.name) + "=" +
              py::repr(to_python(self.cast<const Struct&>().*(fields.member), self)).template cast<std::string>()),
     ...);
    return std::string(name) + "(" + text + ")";
  });
}

void bind_nouns(py::module_& m) {
  py::class_<WorkerKey>(m, "WorkerKey", "A worker process: its place and its incarnation.")
      .def(py::init([](std::string id, uint64_t epoch) { return WorkerKey{std::move(id), epoch}; }), py::arg("id"),
           py::arg("epoch"))
      .def_readonly("id", &WorkerKey::id)
      .def_readonly("epoch", &WorkerKey::epoch)
      .def("__hash__", [](const WorkerKey& w) { return std::hash<std::string>()(w.id) ^ w.epoch; })
      .def(
          "__eq__", [](const WorkerKey& a, const WorkerKey& b) { return a == b; }, py::is_operator())
      .def("__repr__", &WorkerKey::str);
  py::class_<FirstTimes>(m, "FirstTimes", "Seconds of a sequence's first output; csrc/handover/sequence_spec.h.")
      .def(py::init([](float queued, float prefill) { return FirstTimes{queued, prefill}; }), py::arg("queued") = 0,
           py::arg("prefill") = 0)
      .def_readonly("queued", &FirstTimes::queued)
      .def_readonly("prefill", &FirstTimes::prefill);
  bind_struct<SampledToken>(m, "SampledToken", Field{"position", &SampledToken::position},
                            Field{"token", &SampledToken::token}, Field{"logprob", &SampledToken::logprob},
                            Field{"finish", &SampledToken::finish},
                            Field{"num_cached_tokens", &SampledToken::num_cached_tokens},
                            Field{"times", &SampledToken::times}, Field{"top_logprobs", &SampledToken::top_logprobs});
  py::enum_<Direction>(m, "Direction").value("SEND", Direction::kSend).value("RECEIVE", Direction::kReceive);
  py::enum_<Refusal>(m, "Refusal")
      .value("VERSION", Refusal::kVersion)
      .value("EPOCH", Refusal::kEpoch)
      .value("NO_SUCH_GRANT", Refusal::kNoSuchGrant)
      .value("SENDER", Refusal::kSender)
      .value("RANGE", Refusal::kRange)
      .value("SIZE", Refusal::kSize);
  py::enum_<SenderState>(m, "SenderState")
      .value("QUEUED", SenderState::kQueued)
      .value("COMPUTE", SenderState::kCompute)
      .value("PUSH", SenderState::kPush)
      .value("AWAIT", SenderState::kAwait)
      .value("COMMIT", SenderState::kCommit)
      .value("LOCAL", SenderState::kLocal)
      .value("FLUSH", SenderState::kFlush)
      .value("GONE", SenderState::kGone);
  py::enum_<ReceiverState>(m, "ReceiverState")
      .value("QUEUED", ReceiverState::kQueued)
      .value("GRANTED", ReceiverState::kGranted)
      .value("VERIFY", ReceiverState::kVerify)
      .value("RUNNING", ReceiverState::kRunning)
      .value("OVER", ReceiverState::kOver);
}

// Packed: its fields have no addresses that pybind11 could take.
void bind_header(py::module_& m) {
  py::class_<KvMessageHeader>(m, "KvMessageHeader")
      .def(py::init<>())
      .def_property(
          "version", [](const KvMessageHeader& h) { return +h.version; },
          [](KvMessageHeader& h, uint8_t v) { h.version = v; })
      .def_property(
          "first_layer", [](const KvMessageHeader& h) { return +h.first_layer; },
          [](KvMessageHeader& h, uint16_t v) { h.first_layer = v; })
      .def_property(
          "num_layers", [](const KvMessageHeader& h) { return +h.num_layers; },
          [](KvMessageHeader& h, uint16_t v) { h.num_layers = v; })
      .def_property(
          "receiver_epoch", [](const KvMessageHeader& h) { return +h.receiver_epoch; },
          [](KvMessageHeader& h, uint64_t v) { h.receiver_epoch = v; })
      .def_property(
          "grant", [](const KvMessageHeader& h) { return +h.grant; },
          [](KvMessageHeader& h, uint64_t v) { h.grant = v; })
      .def_property(
          "first_token", [](const KvMessageHeader& h) { return +h.first_token; },
          [](KvMessageHeader& h, uint32_t v) { h.first_token = v; })
      .def_property(
          "tokens", [](const KvMessageHeader& h) { return +h.tokens; },
          [](KvMessageHeader& h, uint32_t v) { h.tokens = v; });
}

void bind_peer_messages(py::module_& m) {
  using namespace message;
  bind_struct<Reserve>(m, "Reserve", Field{"spec", &Reserve::spec}, Field{"given_up", &Reserve::given_up});
  bind_struct<Commit>(m, "Commit", Field{"key", &Commit::key}, Field{"grant", &Commit::grant},
                      Field{"first", &Commit::first}, Field{"bytes", &Commit::bytes},
                      Field{"checksum", &Commit::checksum});
  bind_struct<Abort>(m, "Abort", Field{"key", &Abort::key}, Field{"grant", &Abort::grant});
  bind_struct<SenderHeartbeat>(m, "SenderHeartbeat", Field{"grants", &SenderHeartbeat::grants});
  bind_struct<Granted>(m, "Granted", Field{"key", &Granted::key}, Field{"grant", &Granted::grant},
                       Field{"prefix_tokens", &Granted::prefix_tokens}, Field{"lease", &Granted::lease});
  bind_struct<NoRoom>(m, "NoRoom", Field{"key", &NoRoom::key}, Field{"reason", &NoRoom::reason});
  bind_struct<PeerCommitted>(m, "PeerCommitted", Field{"key", &PeerCommitted::key},
                             Field{"grant", &PeerCommitted::grant});
  bind_struct<Expired>(m, "Expired", Field{"key", &Expired::key}, Field{"grant", &Expired::grant});
  bind_struct<BadChecksum>(m, "BadChecksum", Field{"key", &BadChecksum::key}, Field{"grant", &BadChecksum::grant},
                           Field{"expected", &BadChecksum::expected}, Field{"found", &BadChecksum::found});
  bind_struct<PeerFenced>(m, "PeerFenced", Field{"key", &PeerFenced::key});
}

void bind_router_messages(py::module_& m) {
  using namespace message;
  bind_struct<Submit>(m, "Submit", Field{"spec", &Submit::spec}, Field{"receiver", &Submit::receiver},
                      Field{"receiver_address", &Submit::receiver_address});
  bind_struct<Cancel>(m, "Cancel", Field{"key", &Cancel::key});
  bind_struct<Fence>(m, "Fence", Field{"key", &Fence::key});
  bind_struct<AttachEntry>(m, "AttachEntry", Field{"key", &AttachEntry::key},
                           Field{"next_position", &AttachEntry::next_position}, Field{"role", &AttachEntry::role});
  bind_struct<Attach>(m, "Attach", Field{"entries", &Attach::entries});
  bind_struct<DrainingAcknowledged>(m, "DrainingAcknowledged");
  bind_struct<Outputs>(m, "Outputs", Field{"key", &Outputs::key}, Field{"tokens", &Outputs::tokens});
  bind_struct<Busy>(m, "Busy", Field{"key", &Busy::key}, Field{"queued_tokens", &Busy::queued_tokens},
                    Field{"limit", &Busy::limit});
  bind_struct<Released>(m, "Released", Field{"key", &Released::key}, Field{"reason", &Released::reason});
  bind_struct<Failed>(m, "Failed", Field{"key", &Failed::key}, Field{"type", &Failed::type},
                      Field{"message", &Failed::message}, Field{"param", &Failed::param});
  bind_struct<ArrivalTimes>(m, "ArrivalTimes", Field{"wire", &ArrivalTimes::wire},
                            Field{"verify", &ArrivalTimes::verify});
  bind_struct<Committed>(m, "Committed", Field{"key", &Committed::key}, Field{"times", &Committed::times});
  bind_struct<Fenced>(m, "Fenced", Field{"key", &Fenced::key});
}

void bind_session_events(py::module_& m) {
  using namespace event;
  bind_struct<event::FromRouter>(
      m, "FromRouter", Field{"router_epoch", &event::FromRouter::router_epoch}, Field{"body", &event::FromRouter::body},
      Field{"queued_tokens", &event::FromRouter::queued_tokens},
      Field{"max_queued_tokens", &event::FromRouter::max_queued_tokens}, Field{"invalid", &event::FromRouter::invalid});
  bind_struct<RouterConnected>(m, "RouterConnected", Field{"router_epoch", &RouterConnected::router_epoch});
  bind_struct<RouterLost>(m, "RouterLost", Field{"router_epoch", &RouterLost::router_epoch});
  bind_struct<DrainingEnded>(m, "DrainingEnded");
  bind_struct<event::FromSender>(m, "FromSender", Field{"sender", &event::FromSender::sender},
                                 Field{"body", &event::FromSender::body},
                                 Field{"invalid", &event::FromSender::invalid});
  bind_struct<event::FromReceiver>(m, "FromReceiver", Field{"receiver", &event::FromReceiver::receiver},
                                   Field{"body", &event::FromReceiver::body});
  bind_struct<SenderLost>(m, "SenderLost", Field{"sender", &SenderLost::sender});
  bind_struct<ReceiverLost>(m, "ReceiverLost", Field{"receiver", &ReceiverLost::receiver},
                            Field{"reason", &ReceiverLost::reason});
  bind_struct<HeartbeatDue>(m, "HeartbeatDue", Field{"receiver", &HeartbeatDue::receiver});
}

void bind_worker_events(py::module_& m) {
  using namespace event;
  bind_struct<Scheduled>(m, "Scheduled", Field{"key", &Scheduled::key}, Field{"blocks", &Scheduled::blocks},
                         Field{"tokens", &Scheduled::tokens}, Field{"cached_tokens", &Scheduled::cached_tokens});
  bind_struct<LayersComputed>(
      m, "LayersComputed", Field{"key", &LayersComputed::key}, Field{"first_layer", &LayersComputed::first_layer},
      Field{"num_layers", &LayersComputed::num_layers}, Field{"first_token", &LayersComputed::first_token},
      Field{"tokens", &LayersComputed::tokens});
  bind_struct<Prefilled>(m, "Prefilled", Field{"key", &Prefilled::key}, Field{"first", &Prefilled::first});
  bind_struct<Output>(m, "Output", Field{"key", &Output::key}, Field{"token", &Output::token});
  bind_struct<Finished>(m, "Finished", Field{"key", &Finished::key}, Field{"finish", &Finished::finish});
  bind_struct<Rejected>(m, "Rejected", Field{"failed", &Rejected::failed});
  bind_struct<RoomChanged>(m, "RoomChanged");
  bind_struct<PushDone>(m, "PushDone", Field{"key", &PushDone::key}, Field{"grant", &PushDone::grant},
                        Field{"ok", &PushDone::ok}, Field{"bytes", &PushDone::bytes},
                        Field{"checksum", &PushDone::checksum});
  bind_struct<ReceiveDone>(m, "ReceiveDone", Field{"grant", &ReceiveDone::grant}, Field{"ok", &ReceiveDone::ok},
                           Field{"bytes", &ReceiveDone::bytes}, Field{"checksum", &ReceiveDone::checksum},
                           Field{"verify", &ReceiveDone::verify});
  bind_struct<EndpointFailed>(m, "EndpointFailed", Field{"peer", &EndpointFailed::peer},
                              Field{"direction", &EndpointFailed::direction});
  bind_struct<EndpointClosed>(m, "EndpointClosed", Field{"peer", &EndpointClosed::peer},
                              Field{"direction", &EndpointClosed::direction});
  bind_struct<Tick>(m, "Tick");
}

void bind_actions(py::module_& m) {
  using namespace action;
  bind_struct<action::ToRouter>(m, "ToRouter", Field{"router_epoch", &action::ToRouter::router_epoch},
                                Field{"body", &action::ToRouter::body});
  bind_struct<ToSender>(m, "ToSender", Field{"sender", &ToSender::sender}, Field{"body", &ToSender::body});
  bind_struct<ToReceiver>(m, "ToReceiver", Field{"receiver", &ToReceiver::receiver}, Field{"body", &ToReceiver::body});
  bind_struct<Meet>(m, "Meet", Field{"receiver", &Meet::receiver}, Field{"address", &Meet::address});
  bind_struct<EnqueueSequence>(m, "EnqueueSequence", Field{"spec", &EnqueueSequence::spec},
                               Field{"role", &EnqueueSequence::role});
  bind_struct<JoinSequence>(m, "JoinSequence", Field{"spec", &JoinSequence::spec},
                            Field{"blocks", &JoinSequence::blocks},
                            Field{"prefix_tokens", &JoinSequence::prefix_tokens});
  bind_struct<CancelSequence>(m, "CancelSequence", Field{"key", &CancelSequence::key});
  bind_struct<ReleaseBlocks>(m, "ReleaseBlocks", Field{"key", &ReleaseBlocks::key});
  bind_struct<PushLayers>(m, "PushLayers", Field{"receiver", &PushLayers::receiver}, Field{"key", &PushLayers::key},
                          Field{"header", &PushLayers::header}, Field{"blocks", &PushLayers::blocks});
  bind_struct<CloseEndpoint>(m, "CloseEndpoint", Field{"peer", &CloseEndpoint::peer},
                             Field{"direction", &CloseEndpoint::direction});
}

void bind_config(py::module_& m) {
  bind_struct<HandoverTimes>(
      m, "HandoverTimes", Field{"lease", &HandoverTimes::lease}, Field{"lease_margin", &HandoverTimes::lease_margin},
      Field{"repeat", &HandoverTimes::repeat}, Field{"reserve_wait", &HandoverTimes::reserve_wait},
      Field{"verify_stall", &HandoverTimes::verify_stall}, Field{"quarantine", &HandoverTimes::quarantine},
      Field{"push_stall", &HandoverTimes::push_stall}, Field{"flush", &HandoverTimes::flush},
      Field{"router_expiry", &HandoverTimes::router_expiry}, Field{"memory", &HandoverTimes::memory});
  bind_struct<HandoverConfig>(
      m, "HandoverConfig", Field{"times", &HandoverConfig::times}, Field{"num_layers", &HandoverConfig::num_layers},
      Field{"layers_per_message", &HandoverConfig::layers_per_message},
      Field{"block_tokens", &HandoverConfig::block_tokens},
      Field{"token_layer_bytes", &HandoverConfig::token_layer_bytes},
      Field{"max_push_tokens", &HandoverConfig::max_push_tokens},
      Field{"max_waiting_reserves", &HandoverConfig::max_waiting_reserves},
      Field{"max_reserves", &HandoverConfig::max_reserves}, Field{"max_silences", &HandoverConfig::max_silences},
      Field{"vocab_size", &HandoverConfig::vocab_size});
  bind_struct<SenderCounts>(
      m, "SenderCounts", Field{"queued", &SenderCounts::queued}, Field{"computing", &SenderCounts::computing},
      Field{"pushing", &SenderCounts::pushing}, Field{"awaiting", &SenderCounts::awaiting},
      Field{"committing", &SenderCounts::committing}, Field{"local", &SenderCounts::local},
      Field{"flushing", &SenderCounts::flushing}, Field{"remembered", &SenderCounts::remembered},
      Field{"pushes_in_flight", &SenderCounts::pushes_in_flight}, Field{"source_blocks", &SenderCounts::source_blocks});
  bind_struct<ReceiverCounts>(
      m, "ReceiverCounts", Field{"queued", &ReceiverCounts::queued}, Field{"granted", &ReceiverCounts::granted},
      Field{"verifying", &ReceiverCounts::verifying}, Field{"running", &ReceiverCounts::running},
      Field{"remembered", &ReceiverCounts::remembered}, Field{"live_grants", &ReceiverCounts::live_grants},
      Field{"quarantined_grants", &ReceiverCounts::quarantined_grants},
      Field{"granted_blocks", &ReceiverCounts::granted_blocks},
      Field{"quarantined_blocks", &ReceiverCounts::quarantined_blocks},
      Field{"receives_in_flight", &ReceiverCounts::receives_in_flight});
  bind_struct<HandoverCounts>(m, "HandoverCounts", Field{"sender", &HandoverCounts::sender},
                              Field{"receiver", &HandoverCounts::receiver});
  bind_struct<Destination>(m, "Destination", Field{"grant", &Destination::grant}, Field{"key", &Destination::key},
                           Field{"first_layer", &Destination::first_layer},
                           Field{"num_layers", &Destination::num_layers},
                           Field{"first_token", &Destination::first_token}, Field{"tokens", &Destination::tokens},
                           Field{"blocks", &Destination::blocks});
}

// A pool written in Python: the simulator's. Rooms travel as (blocks, prefix_blocks).
class PythonGrantPool : public GrantPool {
 public:
  explicit PythonGrantPool(py::object pool) : pool_(std::move(pool)) {}

  std::optional<Reservation> grant(const Want& want) override {
    const py::object reservation = pool_.attr("grant")(py::cast(*want.spec));
    if (reservation.is_none()) return std::nullopt;
    auto [blocks, prefix_blocks] = reservation.cast<std::pair<std::vector<int32_t>, int32_t>>();
    return Reservation{std::move(blocks), prefix_blocks};
  }
  void join(const Reservation& reservation) override {
    pool_.attr("join")(reservation.blocks, reservation.prefix_blocks);
  }
  void quarantine(const Reservation& reservation) override {
    pool_.attr("quarantine")(reservation.blocks, reservation.prefix_blocks);
  }
  void free_quarantined(const Reservation& reservation) override {
    pool_.attr("free_quarantined")(reservation.blocks, reservation.prefix_blocks);
  }

 private:
  py::object pool_;
};

// Handover with the Python pool that it needs.
struct PythonHandover {
  PythonHandover(WorkerKey self, const HandoverConfig& config, py::object pool)
      : pool(std::move(pool)), handover(std::move(self), config, this->pool) {}
  PythonGrantPool pool;
  Handover handover;
};

void bind_machines(py::module_& m) {
  py::class_<PythonHandover>(m, "Handover",
                             "Both machines of one worker, over a pool object; csrc/handover/handover.h.")
      .def(py::init<WorkerKey, HandoverConfig, py::object>(), py::arg("self_key"), py::arg("config"), py::arg("pool"))
      .def(
          "handle",
          [](PythonHandover& self, const Event& event, Seconds now) {
            Actions out;
            self.handover.handle(event, now, out);
            return out;
          },
          py::arg("event"), py::arg("now"))
      .def(
          "accept",
          [](PythonHandover& self, const WorkerKey& sender, const KvMessageHeader& header, uint64_t payload_bytes,
             Seconds now) {
            Actions out;
            auto answer = self.handover.accept(sender, header, payload_bytes, now, out);
            return std::make_pair(std::move(answer), std::move(out));
          },
          py::arg("sender"), py::arg("header"), py::arg("payload_bytes"), py::arg("now"))
      .def("next_deadline", [](const PythonHandover& self) { return self.handover.next_deadline(); })
      .def("counts", [](const PythonHandover& self) { return self.handover.counts(); })
      .def("idle", [](const PythonHandover& self) { return self.handover.idle(); })
      .def("sender_state",
           [](const PythonHandover& self, const RequestKey& key) { return self.handover.sender().state(key); })
      .def("receiver_state",
           [](const PythonHandover& self, const RequestKey& key) { return self.handover.receiver().state(key); });
}

}  // namespace

void bind_handover(py::module_& module) {
  py::register_exception<ContractBroken>(module, "ContractBroken", PyExc_RuntimeError);
  bind_nouns(module);
  bind_header(module);
  bind_config(module);
  py::module_ messages = module.def_submodule("message", "What peers and routers say.");
  bind_peer_messages(messages);
  bind_router_messages(messages);
  py::module_ events = module.def_submodule("event", "What the machines are told.");
  bind_session_events(events);
  bind_worker_events(events);
  py::module_ actions = module.def_submodule("action", "What the machines want done.");
  bind_actions(actions);
  bind_machines(module);
}

}  // namespace rtp_llm
