# rtp_llm._engine: the pybind11 module, the only door between the two worlds.

rtp_glob(RTP_BINDING_SOURCES "csrc/bindings")
if(RTP_BINDING_SOURCES)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -m pybind11 --cmakedir
    OUTPUT_VARIABLE pybind11_DIR
    OUTPUT_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE PYBIND11_LOOKUP)
  if(NOT PYBIND11_LOOKUP EQUAL 0)
    message(FATAL_ERROR "pybind11 is not installed for ${Python_EXECUTABLE}: pip install pybind11")
  endif()
  set(PYBIND11_FINDPYTHON ON)
  find_package(pybind11 CONFIG REQUIRED)

  # NO_EXTRAS: no link-time optimization. -O1: this is glue, called once a step, and its templates cost
  # the compiler minutes and gigabytes at -O3.
  pybind11_add_module(_engine MODULE NO_EXTRAS ${RTP_BINDING_SOURCES})
  target_compile_options(_engine PRIVATE -O1 -fvisibility=hidden)
  target_link_libraries(_engine PRIVATE rtp_core)
  set_target_properties(_engine PROPERTIES
    LIBRARY_OUTPUT_DIRECTORY "${RTP_OUTPUT_DIR}"
    BUILD_RPATH "$ORIGIN/lib"
    INSTALL_RPATH "$ORIGIN/lib")
  install(TARGETS _engine LIBRARY DESTINATION ".")
endif()
