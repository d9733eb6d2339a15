// Device: opened by name, handed to the objects that compute on it; and its list of allocations.

#include <dlfcn.h>
#include <pybind11/stl.h>

#include <filesystem>

#include "bindings/bindings.h"
#include "device/device.h"

namespace py = pybind11;

namespace rtp_llm {
namespace {

// Where librtp_core.so lies: the backends are beside it.
std::string library_dir() {
  Dl_info info{};
  check(dladdr(reinterpret_cast<void*>(&supported_isas), &info) != 0, "can't find where librtp_core.so lies");
  return std::filesystem::path(info.dli_fname).parent_path().string();
}

}  // namespace

void bind_device(py::module_& module) {
  py::class_<Device>(module, "Device", "One accelerator or the CPU: memory and ops.")
      .def_property_readonly("backend", &Device::backend)
      .def_property_readonly("isa", &Device::isa)
      .def(
          "allocations",
          [](const Device& device) {
            py::list list;
            for (const Allocation& allocation : device.allocations())
              list.append(py::make_tuple(allocation.address, allocation.bytes, allocation.tag));
            return list;
          },
          "(address, bytes, tag) of everything allocated on the device")
      .def(
          "memory",
          [](const Device& device) -> py::object {
            const std::optional<DeviceMemory> memory = device.memory();
            return memory ? py::object(py::make_tuple(memory->free, memory->total)) : py::none();
          },
          "(free, total) bytes of an accelerator's own memory; None where the device shares the host's.")
      .def("read_rate", &Device::read_rate, py::arg("bytes"), py::arg("rounds") = 4,
           py::call_guard<py::gil_scoped_release>(),
           "Bytes a second that the device reads from so much of its memory, the best of some rounds.");

  module.def(
      "open_device",
      [](const std::string& backend, int num_threads, const std::string& isa, int device_index) {
        return open_device(backend, {.num_threads = num_threads, .isa = isa, .device_index = device_index},
                           library_dir());
      },
      py::arg("backend") = "cpu", py::kw_only(), py::arg("num_threads") = 1, py::arg("isa") = "",
      py::arg("device_index") = 0, py::call_guard<py::gil_scoped_release>(),
      "Open a backend. Raises UnavailableError naming backend, ISA and what this machine has.");
  module.def("supported_isas", &supported_isas, "SIMD levels of this machine, best first.");
}

}  // namespace rtp_llm
