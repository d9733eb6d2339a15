// Native exceptions become classes of rtp_llm/errors.py. The classes are looked up when one is thrown: the module
// can be loaded before, or without, the package's own modules.

#include <utility>

#include "bindings/bindings.h"
#include "tensor/check.h"
#include "transfer/invalid_request.h"

namespace py = pybind11;

namespace rtp_llm {
namespace {

template <class... Arguments>
void raise(const char* name, const std::exception& error, Arguments&&... arguments) {
  try {
    const py::object type = py::module_::import("rtp_llm.errors").attr(name);
    const py::object raised = type(error.what(), std::forward<Arguments>(arguments)...);
    PyErr_SetObject(type.ptr(), raised.ptr());
  } catch (py::error_already_set& missing) {
    missing.restore();
  }
}

}  // namespace

void bind_errors(py::module_&) {
  // Caught in this order: an InvalidRequest is an InvalidArgument, that and Unavailable are Errors.
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const InvalidRequest& error) {
      raise(error.type().c_str(), error, py::arg("param") = error.param());
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
