# The C++ tests: tests/cpp/<room>/*.cc becomes <build dir>/tests/<room>_test, linked to rtp_core. A
# file named *_main.cc there is a program of its own (a second process of a test), without check.h's
# main: <build dir>/tests/<room>_<name>.
#
# With RTP_CUDA, tests/cuda/*_test.cu, *_test.cc and *_check.cu, linked with the backend's objects, become programs of their
# names there; they need a GPU, so `make test-gpu` runs them.
#
# RTP_TEST_DATA_DIR points at tests/data in the source tree; backends are found beside rtp_core.

get_property(RTP_CPU_TARGETS GLOBAL PROPERTY RTP_CPU_TARGETS)

function(rtp_test_program target)
  add_executable(${target} ${ARGN})
  target_include_directories(${target} PRIVATE "${CMAKE_SOURCE_DIR}/tests/cpp")
  target_compile_definitions(${target} PRIVATE RTP_TEST_DATA_DIR="${CMAKE_SOURCE_DIR}/tests/data")
  target_link_libraries(${target} PRIVATE rtp_core ucx::ucp ucx::ucs)
  set_target_properties(${target} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests"
    BUILD_RPATH "${RTP_LIB_DIR};${UCX_ROOT}/lib")
  if(RTP_CPU_TARGETS)
    add_dependencies(${target} ${RTP_CPU_TARGETS})
  endif()
endfunction()

file(GLOB test_directories CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/tests/cpp/*")
foreach(directory IN LISTS test_directories)
  if(NOT IS_DIRECTORY "${directory}")
    continue()
  endif()
  get_filename_component(room "${directory}" NAME)
  file(GLOB sources CONFIGURE_DEPENDS "${directory}/*.cc")
  set(programs ${sources})
  list(FILTER programs INCLUDE REGEX "_main\\.cc$")
  list(FILTER sources EXCLUDE REGEX "_main\\.cc$")
  foreach(program IN LISTS programs)
    get_filename_component(name "${program}" NAME_WE)
    string(REGEX REPLACE "_main$" "" name "${name}")
    rtp_test_program(${room}_${name} "${program}")
  endforeach()
  if(sources)
    rtp_test_program(${room}_test "${CMAKE_SOURCE_DIR}/tests/cpp/main.cc" ${sources})
    add_test(NAME ${room} COMMAND ${room}_test)
  endif()
endforeach()

if(RTP_CUDA)
  file(GLOB cuda_programs CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/tests/cuda/*_test.c[cu]"
       "${CMAKE_SOURCE_DIR}/tests/cuda/*_check.cu")
  foreach(source IN LISTS cuda_programs)
    rtp_cuda_program("${source}" tests)
  endforeach()
  foreach(call IN ITEMS Malloc HostAlloc Free FreeHost EventSynchronize StreamSynchronize EventQuery EventRecord
          EventElapsedTime StreamWaitEvent MemsetAsync MemcpyAsync LaunchKernelExC GraphLaunch)
    target_link_options(step_calls_test PRIVATE "LINKER:--wrap=cuda${call}")  # the program counts these calls
  endforeach()
endif()

# tests/bindings/*.cc: Python modules of the tests, <build dir>/tests/<name>.<abi>.so.
if(RTP_BUILD_BINDINGS)
  file(GLOB sources CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/tests/bindings/*.cc")
  foreach(source IN LISTS sources)
    get_filename_component(name "${source}" NAME_WE)
    pybind11_add_module(${name} MODULE NO_EXTRAS "${source}")
    target_compile_options(${name} PRIVATE -O1 -fvisibility=hidden)
    target_link_libraries(${name} PRIVATE rtp_core)
    set_target_properties(${name} PROPERTIES
      LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests"
      BUILD_RPATH "${RTP_LIB_DIR};${UCX_ROOT}/lib")
  endforeach()
endif()
