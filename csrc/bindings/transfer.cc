// KvTransfer: the transfer thread, its queue in and its outbox. Messages, events and actions are those of
// handover.cc.
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "engine/engine.h"
#include "transfer/kv_transfer.h"

namespace py = pybind11;

namespace rtp_llm {
namespace {

TransportConfig make_transport_config(const std::string& mode, std::string listen_host, std::string advertise_host,
                                      std::string net_device, std::string shared_memory_directory,
                                      int64_t min_shared_memory_bytes, double hello_timeout_s,
                                      std::map<std::string, std::string> ucx_settings) {
  return {.mode = transport_mode_from_name(mode),
          .listen_host = std::move(listen_host),
          .advertise_host = std::move(advertise_host),
          .net_device = std::move(net_device),
          .shared_memory_directory = std::move(shared_memory_directory),
          .min_shared_memory_bytes = min_shared_memory_bytes,
          .hello_timeout_s = hello_timeout_s,
          .ucx_settings = std::move(ucx_settings)};
}

void bind_transport_config(py::module_& module) {
  const TransportConfig defaults;
  py::class_<TransportConfig>(module, "TransportConfig", "How KV travels; csrc/transfer/transport_config.h.")
      .def(py::init(&make_transport_config), py::arg("mode") = "auto", py::kw_only(),
           py::arg("listen_host") = defaults.listen_host, py::arg("advertise_host") = defaults.advertise_host,
           py::arg("net_device") = defaults.net_device,
           py::arg("shared_memory_directory") = defaults.shared_memory_directory,
           py::arg("min_shared_memory_bytes") = defaults.min_shared_memory_bytes,
           py::arg("hello_timeout_s") = defaults.hello_timeout_s, py::arg("ucx_settings") = defaults.ucx_settings);
}

void bind_outgoing(py::module_& module) {
  py::class_<outgoing::WantEndpoint>(module, "WantEndpoint",
                                     "KV waits for this receiver: say hello again, then connect() with the answer's "
                                     "address and nonce.")
      .def_readonly("receiver", &outgoing::WantEndpoint::receiver);
  py::class_<outgoing::Warning>(module, "TransferWarning").def_readonly("text", &outgoing::Warning::text);
  py::class_<outgoing::Fault>(module, "TransferFault", "The transfer thread has ended; nothing more will come.")
      .def_readonly("text", &outgoing::Fault::text);
}

py::dict lanes_of(const TransportCounts& transport) {
  py::dict lanes;
  for (const auto& [name, lane] : transport.lanes) {
    py::dict figures;
    figures["messages_sent"] = lane.messages_sent;
    figures["bytes_sent"] = lane.bytes_sent;
    figures["messages_received"] = lane.messages_received;
    figures["bytes_received"] = lane.bytes_received;
    lanes[py::str(name)] = figures;
  }
  return lanes;
}

py::dict as_dict(const KvTransferCounts& counts) {
  const DataPlaneCounts& data = counts.data;
  py::dict result;
  result["sender"] = counts.handover.sender;
  result["receiver"] = counts.handover.receiver;
  result["payload_bytes_sent"] = data.payload_bytes_sent;
  result["payload_bytes_received"] = data.payload_bytes_received;
  result["messages_sent"] = data.messages_sent;
  result["messages_received"] = data.messages_received;
  result["messages_failed"] = data.messages_failed;
  result["messages_refused"] = data.transport.messages_refused;
  result["endpoints_rejected"] = data.transport.endpoints_rejected;
  result["endpoints"] = data.transport.outbound + data.transport.inbound;
  result["pushes_waiting"] = data.pushes_waiting;
  result["sends_outstanding"] = data.transport.sends_outstanding;
  result["receives_outstanding"] = data.transport.receives_outstanding;
  result["lanes"] = lanes_of(data.transport);
  result["send_seconds"] = counts.send_seconds;
  result["receive_seconds"] = counts.receive_seconds;
  result["committed_sent"] = counts.committed_sent;
  result["committed_received"] = counts.committed_received;
  result["prefix_hit_tokens"] = counts.prefix_hit_tokens;
  result["no_room"] = counts.no_room;
  result["expired"] = counts.expired;
  result["bad_checksum"] = counts.bad_checksum;
  return result;
}

// (seconds, key, point, first_layer, num_layers, first_token, tokens, bytes)
py::list as_list(const std::vector<TraceEntry>& entries) {
  py::list list;
  for (const TraceEntry& entry : entries)
    list.append(py::make_tuple(entry.time, entry.key, name_of(entry.point), entry.first_layer, entry.num_layers,
                               entry.first_token, entry.tokens, entry.bytes));
  return list;
}

template <class Result>
Result without_gil(const std::function<Result()>& call) {
  py::gil_scoped_release free_gil;
  return call();
}

void bind_kv_transfer(py::module_& module) {
  const auto free_gil = py::call_guard<py::gil_scoped_release>();
  const KvTransferConfig defaults;
  py::class_<KvTransfer>(module, "KvTransfer",
                         "The transfer thread of a worker; csrc/transfer/kv_transfer.h has the contract.")
      .def(py::init([](Device& device, Engine& engine, WorkerKey worker, TransportConfig transport, HandoverTimes times,
                       int max_push_tokens, int64_t max_queued_tokens, size_t trace_entries) {
             return std::make_unique<KvTransfer>(device, engine, std::move(worker),
                                                 KvTransferConfig{.transport = std::move(transport),
                                                                  .times = times,
                                                                  .max_push_tokens = max_push_tokens,
                                                                  .max_queued_tokens = max_queued_tokens,
                                                                  .trace_entries = trace_entries});
           }),
           py::arg("device"), py::arg("engine"), py::arg("worker"), py::arg("transport") = defaults.transport,
           py::kw_only(), py::arg("times") = defaults.times, py::arg("max_push_tokens") = defaults.max_push_tokens,
           py::arg("max_queued_tokens") = defaults.max_queued_tokens, py::arg("trace_entries") = defaults.trace_entries,
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), free_gil,
           "Opens UCX, listens, becomes the engine's listener: before engine.start().")
      .def("start", &KvTransfer::start, free_gil)
      .def("stop", &KvTransfer::stop, free_gil)
      .def_property_readonly("worker", &KvTransfer::self)
      .def_property_readonly("address", &KvTransfer::address, "For PeerHello.transport_address.")
      .def("expect", &KvTransfer::expect, py::arg("sender"), free_gil,
           "The nonce of a hello to this sender: it admits one endpoint.")
      .def("connect", &KvTransfer::connect, py::arg("receiver"), py::arg("address"), py::arg("nonce"), free_gil,
           "With what a receiver's hello held; nothing happens if an endpoint to it stands.")
      .def("post", &KvTransfer::post, py::arg("event"),
           "Hand an event to the machines. Of a Submit the queue's length, its limit and whether the engine could ever "
           "run it are filled in.")
      .def("post_outputs", &KvTransfer::post_outputs, py::arg("columns"), free_gil,
           "Tokens that went to their routers (or were lost with the session): remembered for a replay.")
      .def("fileno", &KvTransfer::fd, "Readable when take() has something.")
      .def("take", &KvTransfer::take,
           "What is to be sent, in order: action.ToRouter, ToSender, ToReceiver, Meet; WantEndpoint, TransferWarning, "
           "TransferFault.")
      .def("counts",
           [](KvTransfer& self) { return as_dict(without_gil<KvTransferCounts>([&] { return self.counts(); })); })
      .def(
          "trace",
          [](KvTransfer& self, const std::optional<RequestKey>& key) {
            return as_list(without_gil<std::vector<TraceEntry>>([&] { return self.trace(key); }));
          },
          py::arg("key") = py::none(),
          "(seconds, key, point, first_layer, num_layers, first_token, tokens, bytes), oldest first.")
      .def("check_idle", &KvTransfer::check_idle, free_gil, "Raises EngineError naming what is in flight.");
}

}  // namespace

void bind_transfer(py::module_& module) {
  bind_transport_config(module);
  bind_outgoing(module);
  bind_kv_transfer(module);
}

}  // namespace rtp_llm
