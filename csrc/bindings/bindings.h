// What rtp_llm._engine is made of: one bind_<room> a file, called once by module.cc at import.
//
// Conventions: every call that may take longer than some microseconds releases the GIL; a callback
// into Python takes it. Native errors become the classes of rtp_llm/errors.py (errors.cc); bindings
// themselves throw InvalidArgument, never a Python error of their own.
#pragma once

#include <pybind11/pybind11.h>

namespace rtp_llm {

void bind_errors(pybind11::module_& module);
void bind_device(pybind11::module_& module);
void bind_kv(pybind11::module_& module);
void bind_model(pybind11::module_& module);
void bind_engine(pybind11::module_& module);
void bind_handover(pybind11::module_& module);
void bind_transfer(pybind11::module_& module);

}  // namespace rtp_llm
