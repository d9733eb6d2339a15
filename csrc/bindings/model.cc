// ModelConfig, Weights, Decoder and Scorer: rtp_llm/model reads files, what it read comes in here.

#include <pybind11/stl.h>

#include <cerrno>
#include <system_error>

#include "bindings/bindings.h"
#include "model/decoder.h"
#include "model/float16.h"
#include "model/random_weights.h"
#include "model/scorer.h"

namespace py = pybind11;

namespace rtp_llm {
namespace {

template <class Enum>
struct Name {
  const char* name;
  Enum value;
};

// Hugging Face's names.
constexpr Name<Activation> kActivations[] = {
    {"silu", Activation::kSilu}, {"gelu", Activation::kGelu}, {"gelu_pytorch_tanh", Activation::kGeluTanh}};
constexpr Name<RopeScaling> kRopeScalings[] = {{"default", RopeScaling::kNone}, {"llama3", RopeScaling::kLlama3}};

template <class Enum, size_t n>
Enum from_name(const Name<Enum> (&names)[n], const char* field, const std::string& name) {
  for (const auto& entry : names)
    if (name == entry.name) return entry.value;
  throw InvalidArgument(concat(field, " '", name, "' is not known"));
}

template <class Enum, size_t n>
std::string to_name(const Name<Enum> (&names)[n], Enum value) {
  for (const auto& entry : names)
    if (value == entry.value) return entry.name;
  return "?";
}

// ModelConfig(vocab_size=…, …), validated.
ModelConfig make_config(const py::kwargs& fields) {
  ModelConfig config;
  const py::object view = py::cast(&config, py::return_value_policy::reference);
  for (const auto& [name, value] : fields) py::setattr(view, name, value);
  config.validate();
  return config;
}

void bind_config(py::module_& module) {
  py::class_<ModelConfig>(module, "ModelConfig", "What the forward pass must know, in Hugging Face's names.")
      .def(py::init(&make_config))
      .def_readwrite("architecture", &ModelConfig::architecture)
      .def_readwrite("vocab_size", &ModelConfig::vocab_size)
      .def_readwrite("hidden_size", &ModelConfig::hidden_size)
      .def_readwrite("intermediate_size", &ModelConfig::intermediate_size)
      .def_readwrite("num_hidden_layers", &ModelConfig::num_hidden_layers)
      .def_readwrite("num_attention_heads", &ModelConfig::num_attention_heads)
      .def_readwrite("num_key_value_heads", &ModelConfig::num_key_value_heads)
      .def_readwrite("head_dim", &ModelConfig::head_dim)
      .def_readwrite("rms_norm_eps", &ModelConfig::rms_norm_eps)
      .def_readwrite("tie_word_embeddings", &ModelConfig::tie_word_embeddings)
      .def_readwrite("attention_bias", &ModelConfig::attention_bias)
      .def_readwrite("attention_output_bias", &ModelConfig::attention_output_bias)
      .def_readwrite("mlp_bias", &ModelConfig::mlp_bias)
      .def_readwrite("qk_norm", &ModelConfig::qk_norm)
      .def_readwrite("max_position_embeddings", &ModelConfig::max_position_embeddings)
      .def_readwrite("rope_theta", &ModelConfig::rope_theta)
      .def_readwrite("rope_factor", &ModelConfig::rope_factor)
      .def_readwrite("rope_low_freq_factor", &ModelConfig::rope_low_freq_factor)
      .def_readwrite("rope_high_freq_factor", &ModelConfig::rope_high_freq_factor)
      .def_readwrite("rope_original_max_position", &ModelConfig::rope_original_max_position)
      .def_property(
          "hidden_act", [](const ModelConfig& config) { return to_name(kActivations, config.hidden_act); },
          [](ModelConfig& config, const std::string& name) {
            config.hidden_act = from_name(kActivations, "hidden_act", name);
          })
      .def_property(
          "rope_scaling", [](const ModelConfig& config) { return to_name(kRopeScalings, config.rope_scaling); },
          [](ModelConfig& config, const std::string& name) {
            config.rope_scaling = from_name(kRopeScalings, "rope_scaling", name);
          })
      .def_property(
          "dtype", [](const ModelConfig& config) { return std::string(name_of(config.dtype)); },
          [](ModelConfig& config, const std::string& name) { config.dtype = dtype_from_name(name); });
}

// A chunk of a file. "float16" is widened to f32: the engine multiplies in f32 or bf16.
void write_chunk(Weights& weights, const std::string& name, int64_t first_row, int64_t rows, int64_t row_elements,
                 const std::string& dtype, const py::buffer& data) {
  const bool half = dtype == "float16";
  const DType file_dtype = half ? DType::kF32 : dtype_from_name(dtype);
  const py::buffer_info bytes = data.request();
  check(PyBuffer_IsContiguous(bytes.view(), 'C') != 0, "tensor ", name, ": the buffer is not contiguous");
  check(first_row >= 0 && rows >= 0 && row_elements >= 0, "tensor ", name, ": a chunk of ", rows, " rows of ",
        row_elements, " elements at row ", first_row);
  const int64_t elements = rows * row_elements;
  const int64_t expected = elements * (half ? 2 : size_of(file_dtype));
  check(bytes.size * bytes.itemsize == expected, "tensor ", name, ": ", rows, " rows of ", row_elements, " ", dtype,
        " are ", expected, " bytes, the buffer has ", bytes.size * bytes.itemsize);
  const py::gil_scoped_release released;
  if (!half) return weights.write(name, first_row, rows, row_elements, file_dtype, bytes.ptr);
  const std::vector<float> wide = widen_float16({static_cast<const uint16_t*>(bytes.ptr), size_t(elements)});
  weights.write(name, first_row, rows, row_elements, file_dtype, wide.data());
}

// The same from an open file: its bytes, or how many there were.
int64_t read_chunk(Weights& weights, const std::string& name, int64_t first_row, int64_t rows, int64_t row_elements,
                   const std::string& dtype, int file, int64_t offset) {
  try {
    const py::gil_scoped_release released;
    return weights.read(name, first_row, rows, row_elements, dtype_from_name(dtype), file, offset);
  } catch (const std::system_error& error) {
    errno = error.code().value();
    PyErr_SetFromErrno(PyExc_OSError);
    throw py::error_already_set();
  }
}

py::bytes score(Scorer& scorer, const std::vector<int32_t>& tokens) {
  std::vector<float> logits;
  {
    const py::gil_scoped_release released;
    logits = scorer.logits(tokens);
  }
  return {reinterpret_cast<const char*>(logits.data()), logits.size() * sizeof(float)};
}

}  // namespace

void bind_model(py::module_& module) {
  using Released = py::call_guard<py::gil_scoped_release>;
  bind_config(module);

  py::class_<ExpectedTensor>(module, "ExpectedTensor", "What the files must hold.")
      .def_readonly("name", &ExpectedTensor::name)
      .def_readonly("shape", &ExpectedTensor::shape);

  py::class_<Weights>(module, "Weights", "A model's tensors, packed by the device as they are written.")
      .def(py::init<Device&, const ModelConfig&>(), py::arg("device"), py::arg("config"), Released(),
           py::keep_alive<1, 2>())
      .def("expected", &Weights::expected, "Every tensor that the model needs, in load order.")
      .def("write", &write_chunk, py::arg("name"), py::arg("first_row"), py::arg("rows"), py::arg("row_elements"),
           py::arg("dtype"), py::arg("data"),
           "Rows [first_row, first_row + rows) of a tensor, from any contiguous buffer, without a copy and without "
           "the GIL. 1-D: row_elements = 1. dtype: float32, bfloat16 or float16 (widened to float32).")
      .def("read", &read_chunk, py::arg("name"), py::arg("first_row"), py::arg("rows"), py::arg("row_elements"),
           py::arg("dtype"), py::arg("file"), py::arg("offset"),
           "The same, float32 or bfloat16, from an open file's `offset` on, without the GIL. Returns their bytes, or "
           "how "
           "many were left in the file.")
      .def(
          "write_random", [](Weights& weights, uint64_t seed) { write_random_weights(weights, seed); }, py::arg("seed"),
          Released(), "Seeded random values for every tensor; the same on every machine.")
      .def("finish", &Weights::finish, py::arg("version") = 0, Released(),
           "Finish packing. Raises, naming every missing tensor. A version other than 0 makes the digest another one.")
      .def("reopen", &Weights::reopen, Released(),
           "Every tensor is expected again and takes the place of what it was, in its memory. No step may run until "
           "finish().")
      .def_property_readonly("digest", &Weights::digest)
      .def_property_readonly("config", &Weights::config, py::return_value_policy::reference_internal);

  py::class_<Decoder>(module, "Decoder", "The forward pass.")
      .def(py::init<Device&, const Weights&>(), py::arg("device"), py::arg("weights"), py::keep_alive<1, 2>(),
           py::keep_alive<1, 3>())
      .def_property_readonly("model_digest", &Decoder::model_digest)
      .def("allocate", &Decoder::allocate, py::kw_only(), py::arg("max_rows"), py::arg("max_logit_rows"),
           py::arg("max_positions"), "Activations for steps of so many rows: what an engine allocates for itself.")
      .def(
          "kv_layout",
          [](const Decoder& decoder, const std::string& kv_dtype, int block_tokens) {
            return decoder.kv_layout(dtype_from_name(kv_dtype), block_tokens);
          },
          py::arg("kv_dtype"), py::arg("block_tokens"));

  py::class_<Scorer>(module, "Scorer", "Logits of given tokens without an engine; takes the decoder for itself.")
      .def(py::init([](Device& device, Decoder& decoder, int64_t max_tokens, int block_tokens, int64_t chunk_tokens,
                       const std::string& kv_dtype) {
             return std::make_unique<Scorer>(device, decoder,
                                             ScorerOptions{.max_tokens = max_tokens,
                                                           .block_tokens = block_tokens,
                                                           .chunk_tokens = chunk_tokens,
                                                           .kv_dtype = dtype_from_name(kv_dtype)});
           }),
           py::arg("device"), py::arg("decoder"), py::kw_only(), py::arg("max_tokens") = 256,
           py::arg("block_tokens") = 16, py::arg("chunk_tokens") = 64, py::arg("kv_dtype") = "float32",
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>())
      .def("logits", &score, py::arg("tokens"),
           "[tokens, vocab] float32 as bytes; row i: of the token after tokens[i].");
}

}  // namespace rtp_llm
