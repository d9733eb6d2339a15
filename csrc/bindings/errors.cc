// Native exceptions become classes of rtp_llm/errors.py. The classes are looked up when one is thrown: the module
// can be loaded before, or without, the package's own modules.

#include "bindings/bindings.h"
#include "tensor/check.h"

namespace py = pybind11;

namespace rtp_llm {
namespace {

void raise(const char* name, const std::exception& error) {
  try {
    const py::object type = py::module_::import("rtp_llm.errors").attr(name);
    PyErr_SetString(type.ptr(), error.what());
  } catch (py::error_already_set& missing) {
    missing.restore();
  }
}

}  // namespace

void bind_errors(py::module_&) {
  // Caught in this order: InvalidArgument and Unavailable are Errors.
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const InvalidArgument& error) {
      raise("InvalidRequestError", error);
    } catch (const Unavailable& error) {
      raise("UnavailableError", error);
    } catch (const Error& error) {
      raise("EngineError", error);
    }
  });
}

}  // namespace rtp_llm
