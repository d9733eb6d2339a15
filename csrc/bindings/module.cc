// rtp_llm._engine: the door between Python and the native engine.

#include "bindings/bindings.h"

PYBIND11_MODULE(_engine, module) {
  module.doc() = "Native engine of rtp_llm: tokens, blocks and devices.";
  // In order of dependency: a signature names only types that are bound before it.
  for (auto* bind : {rtp_llm::bind_errors, rtp_llm::bind_device, rtp_llm::bind_kv, rtp_llm::bind_model,
                     rtp_llm::bind_engine, rtp_llm::bind_handover, rtp_llm::bind_transfer})
    if (bind) bind(module);
}
