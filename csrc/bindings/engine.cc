// Engine and what goes in and out of it: RequestKey, SamplingParams, SequenceSpec, EngineConfig, TokenColumns,
// EngineLoad.
#include "engine/engine.h"

#include <pybind11/stl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <tuple>

#include "bindings/bindings.h"
#include "device/memory_rate.h"

namespace py = pybind11;

namespace rtp_llm {

namespace {

void bind_key(py::module_& module) {
  py::class_<RequestKey>(module, "RequestKey",
                         "k = (router_epoch, request, choice, attempt): one attempt at one answer.")
      .def(py::init([](uint64_t router_epoch, uint64_t request, uint32_t choice, uint32_t attempt) {
             return RequestKey{router_epoch, request, choice, attempt};
           }),
           py::arg("router_epoch"), py::arg("request"), py::arg("choice") = 0, py::arg("attempt") = 0)
      .def_readonly("router_epoch", &RequestKey::router_epoch)
      .def_readonly("request", &RequestKey::request)
      .def_readonly("choice", &RequestKey::choice)
      .def_readonly("attempt", &RequestKey::attempt)
      .def("__hash__", [](const RequestKey& key) { return std::hash<RequestKey>()(key); })
      .def(
          "__eq__", [](const RequestKey& a, const RequestKey& b) { return a == b; }, py::is_operator())
      .def(
          "__lt__", [](const RequestKey& a, const RequestKey& b) { return a < b; }, py::is_operator())
      .def("__repr__", &RequestKey::str);
}

// Calls each(name, member) for each field of SamplingParams.
template <class Each>
void for_each_sampling_field(Each each) {
  std::apply([&](const auto&... field) { (each(field.name, field.member), ...); }, kSamplingFields);
}

// Throws TypeError for a name that isn't a field and for a value that isn't of the field's type.
SamplingParams make_sampling(const py::kwargs& given) {
  SamplingParams params;
  size_t num_taken = 0;
  for_each_sampling_field([&]<class Value>(const char* name, Value SamplingParams::* member) {
    if (!given.contains(name)) return;
    try {
      params.*member = given[name].cast<Value>();
    } catch (const py::cast_error&) {
      throw py::type_error(concat(name, ": no value for this field: ", std::string(py::repr(given[name]))));
    }
    ++num_taken;
  });
  if (num_taken < given.size())
    throw py::type_error("not a field of SamplingParams, among " + std::string(py::repr(given)));
  return params;
}

void bind_sampling(py::module_& module) {
  py::class_<SamplingParams> params(module, "SamplingParams", "csrc/handover/sampling_params.h; given by field names.");
  params.def(py::init(&make_sampling));
  py::list fields;
  for_each_sampling_field([&](const char* name, auto member) {
    params.def_readonly(name, member);
    fields.append(name);
  });
  params.attr("FIELDS") = py::tuple(fields);
}

SequenceSpec make_spec(const RequestKey& key, std::vector<int32_t> prompt, std::vector<int32_t> output,
                       SamplingParams sampling, std::string cache_salt, int32_t priority, bool solo) {
  return {.key = key,
          .prompt = std::move(prompt),
          .output = std::move(output),
          .sampling = std::move(sampling),
          .cache_salt = std::move(cache_salt),
          .priority = priority,
          .solo = solo};
}

void bind_spec(py::module_& module) {
  py::enum_<Role>(module, "Role").value("ALONE", Role::kAlone).value("SENDER", Role::kSender);
  py::class_<SequenceSpec>(module, "SequenceSpec", "What an engine is asked to run; csrc/handover/sequence_spec.h.")
      .def(py::init(&make_spec), py::kw_only(), py::arg("key"), py::arg("prompt"),
           py::arg("output") = std::vector<int32_t>(), py::arg("sampling") = SamplingParams(),
           py::arg("cache_salt") = "", py::arg("priority") = 0, py::arg("solo") = false)
      .def_readonly("key", &SequenceSpec::key)
      .def_readonly("prompt", &SequenceSpec::prompt)
      .def_readonly("output", &SequenceSpec::output)
      .def_readonly("sampling", &SequenceSpec::sampling)
      .def_readonly("cache_salt", &SequenceSpec::cache_salt)
      .def_readonly("priority", &SequenceSpec::priority)
      .def_readonly("solo", &SequenceSpec::solo);
}

EngineConfig make_config(int64_t max_num_batched_tokens, int32_t max_num_seqs, int32_t max_model_len,
                         int32_t block_tokens, int64_t kv_pool_bytes, int32_t num_kv_blocks,
                         const std::string& kv_dtype, bool enable_prefix_caching, int32_t layers_per_message,
                         double itl_target_s, std::vector<int32_t> eos_token_ids) {
  return {.max_num_batched_tokens = max_num_batched_tokens,
          .max_num_seqs = max_num_seqs,
          .max_model_len = max_model_len,
          .block_tokens = block_tokens,
          .kv_pool_bytes = kv_pool_bytes,
          .num_kv_blocks = num_kv_blocks,
          .kv_dtype = dtype_from_name(kv_dtype),
          .enable_prefix_caching = enable_prefix_caching,
          .layers_per_message = layers_per_message,
          .itl_target_s = itl_target_s,
          .eos_token_ids = std::move(eos_token_ids)};
}

void bind_config(py::module_& module) {
  // No defaults: rtp_llm/config.py has them.
  py::class_<EngineConfig>(module, "EngineConfig")
      .def(py::init(&make_config), py::kw_only(), py::arg("max_num_batched_tokens"), py::arg("max_num_seqs"),
           py::arg("max_model_len"), py::arg("block_tokens"), py::arg("kv_pool_bytes"), py::arg("num_kv_blocks"),
           py::arg("kv_dtype"), py::arg("enable_prefix_caching"), py::arg("layers_per_message"),
           py::arg("itl_target_s"), py::arg("eos_token_ids"))
      .def_readonly("max_num_seqs", &EngineConfig::max_num_seqs)
      .def_readonly("max_model_len", &EngineConfig::max_model_len)
      .def_readonly("block_tokens", &EngineConfig::block_tokens)
      .def_readonly("eos_token_ids", &EngineConfig::eos_token_ids)
      .def_property_readonly("kv_dtype",
                             [](const EngineConfig& config) { return std::string(name_of(config.kv_dtype)); });
}

// A list of one field of every key.
template <class Field>
auto key_column(Field RequestKey::* field) {
  return [field](const TokenColumns& columns) {
    std::vector<Field> values;
    values.reserve(columns.key.size());
    for (const RequestKey& key : columns.key) values.push_back(key.*field);
    return values;
  };
}

void bind_outputs(py::module_& module) {
  // Each access makes a list: take a column once.
  py::class_<TokenColumns>(module, "TokenColumns",
                           "Sampled tokens, columns of equal length; a row's position counts from 0.")
      .def("__len__", [](const TokenColumns& columns) { return columns.key.size(); })
      .def_readonly("key", &TokenColumns::key)
      .def_property_readonly("router_epoch", key_column(&RequestKey::router_epoch))
      .def_property_readonly("request", key_column(&RequestKey::request))
      .def_property_readonly("choice", key_column(&RequestKey::choice))
      .def_property_readonly("attempt", key_column(&RequestKey::attempt))
      .def_readonly("position", &TokenColumns::position)
      .def_readonly("token", &TokenColumns::token)
      .def_readonly("logprob", &TokenColumns::logprob)
      .def_property_readonly("finish",
                             [](const TokenColumns& columns) {
                               std::vector<int> values;
                               values.reserve(columns.finish.size());
                               for (FinishReason finish : columns.finish) values.push_back(static_cast<int>(finish));
                               return values;
                             })
      .def_readonly("num_cached_tokens", &TokenColumns::num_cached_tokens)
      .def_property_readonly("times",
                             [](const TokenColumns& columns) {
                               std::vector<std::pair<float, float>> values;
                               values.reserve(columns.times.size());
                               for (const FirstTimes& each : columns.times)
                                 values.emplace_back(each.queued, each.prefill);
                               return values;
                             })
      .def_readonly("started", &TokenColumns::started)
      .def_property_readonly("top_logprobs", [](const TokenColumns& columns) {
        std::vector<std::vector<std::pair<int32_t, float>>> rows;
        rows.reserve(columns.num_top_logprobs.size());
        auto top = columns.top_logprobs.begin();
        for (const int32_t count : columns.num_top_logprobs) {
          rows.emplace_back(top, top + count);
          top += count;
        }
        return rows;
      });
}

void bind_load(py::module_& module) {
  py::class_<SlotCounts>(module, "SlotCounts")
      .def_readonly("total", &SlotCounts::total)
      .def_readonly("taken", &SlotCounts::taken)
      .def_readonly("taken_by", &SlotCounts::taken_by);
  py::class_<StepSample>(module, "StepSample")
      .def_readonly("decode_rows", &StepSample::decode_rows)
      .def_readonly("context_tokens", &StepSample::context_tokens)
      .def_readonly("prefill_rows", &StepSample::prefill_rows)
      .def_readonly("attention_pairs", &StepSample::attention_pairs)
      .def_readonly("seconds", &StepSample::seconds);
  py::class_<EngineLoad>(module, "EngineLoad")
      .def_readonly("slots", &EngineLoad::slots)
      .def_readonly("slots_awaited", &EngineLoad::slots_awaited)
      .def_readonly("queued_tokens", &EngineLoad::queued_tokens)
      .def_readonly("waiting", &EngineLoad::waiting)
      .def_readonly("running", &EngineLoad::running)
      .def_readonly("blocks", &EngineLoad::blocks)
      .def_readonly("step", &EngineLoad::step)
      .def_readonly("step_running_s", &EngineLoad::step_running_s)
      .def_readonly("steps", &EngineLoad::steps)
      .def_readonly("paused", &EngineLoad::paused)
      .def_readonly("prompt_tokens_computed", &EngineLoad::prompt_tokens_computed)
      .def_readonly("decode_tokens_computed", &EngineLoad::decode_tokens_computed)
      .def_readonly("preemptions", &EngineLoad::preemptions)
      .def_readonly("prefix_hit_tokens", &EngineLoad::prefix_hit_tokens);
}

// As messages carry them: 17 bytes each, kind and hash.
std::optional<py::bytes> cache_events(Engine& engine, uint64_t first) {
  std::optional<std::vector<CacheEvent>> events;
  {
    const py::gil_scoped_release free_gil;
    events = engine.block_pool().cache_events(first);
  }
  if (!events) return std::nullopt;
  return py::bytes(reinterpret_cast<const char*>(events->data()), events->size() * sizeof(CacheEvent));
}

std::pair<uint64_t, py::bytes> cache_snapshot(Engine& engine) {
  CacheSnapshot snapshot;
  {
    const py::gil_scoped_release free_gil;
    snapshot = engine.block_pool().cache_snapshot();
  }
  const auto* hashes = reinterpret_cast<const char*>(snapshot.hashes.data());
  return {snapshot.number, py::bytes(hashes, snapshot.hashes.size() * sizeof(BlockHash))};
}

// Adds 1 to an eventfd when there are outputs again; without the GIL, from the engine thread.
void notify_through(Engine& engine, int eventfd) {
  engine.set_output_notify([eventfd] {
    const uint64_t one = 1;
    while (::write(eventfd, &one, sizeof one) < 0)
      if (errno != EINTR) throw std::system_error(errno, std::generic_category(), "write to the output eventfd");
  });
}

}  // namespace

void bind_engine(py::module_& module) {
  bind_key(module);
  bind_sampling(module);
  bind_spec(module);
  bind_config(module);
  bind_outputs(module);
  bind_load(module);
  const auto free_gil = py::call_guard<py::gil_scoped_release>();
  py::class_<Engine>(module, "Engine", "One device, one model, one thread; csrc/engine/engine.h has the contract.")
      .def(py::init<Device&, Decoder&, EngineConfig>(), py::arg("device"), py::arg("decoder"), py::arg("config"),
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), free_gil)
      .def("start", &Engine::start)
      .def("stop", &Engine::stop, free_gil)
      .def("add", &Engine::add, py::arg("spec"), py::arg("role") = Role::kAlone, free_gil)
      .def("cancel", &Engine::cancel, py::arg("key"), free_gil)
      .def("release", &Engine::release, py::arg("key"), free_gil)
      .def("pause", &Engine::pause, free_gil, "No step begins until resume(); load().paused once none runs.")
      .def("resume", &Engine::resume, free_gil)
      .def("give_up_all", &Engine::give_up_all, free_gil, "End every sequence as if the engine had lost it.")
      .def(
          "withdraw_cache", [](Engine& engine) { engine.block_pool().withdraw_all(); }, free_gil,
          "What the prefix cache knows is worth nothing any more.")
      .def("notify_through", &notify_through, py::arg("eventfd"),
           "Before start: the eventfd that outputs make readable.")
      .def("take_outputs", &Engine::take_outputs, free_gil)
      .def("failure", &Engine::failure, free_gil)
      .def("load", &Engine::load, free_gil)
      .def(
          "last_cache_event", [](Engine& engine) { return engine.block_pool().last_cache_event(); }, free_gil,
          "Number of the newest; 0: there was none.")
      .def("cache_events", &cache_events, py::arg("first"),
           "What has happened to the prefix cache from event `first` on; None if the log doesn't reach back so far.")
      .def("cache_snapshot", &cache_snapshot, "(number of the last event in it, all block hashes).")
      .def("check_idle", &Engine::check_idle, free_gil)
      .def("numerics_id", &Engine::numerics_id)
      .def_property_readonly("config", &Engine::config)
      .def_property_readonly("kv_pool_bytes", &Engine::kv_pool_bytes)
      .def_property_readonly("kv_layout", &Engine::kv_layout);
  module.def("memory_read_rate", &memory_read_rate, py::arg("bytes"), py::arg("threads"), py::arg("rounds") = 7,
             "Bytes a second that threads read from memory: the yardstick of decode speed.", free_gil);
}

}  // namespace rtp_llm
