// rtp_llm._engine: the door between Python and the native engine.

#include "bindings/bindings.h"

PYBIND11_MODULE(_engine, module) {
  module.doc() = "Native engine of rtp_llm: tokens, blocks and devices.";
  // In order of dependency: a signature names only types that are bound before it.
  rtp_llm::bind_errors(module);
  rtp_llm::bind_device(module);
  rtp_llm::bind_kv(module);
  rtp_llm::bind_model(module);
  rtp_llm::bind_engine(module);
  rtp_llm::bind_handover(module);
  rtp_llm::bind_transfer(module);
}
