# librtp_cuda.so: csrc/device/cuda, opened with dlopen like the CPU backends; one C factory is exported.
#
# Needs nvcc 12.8 or newer; links nothing but the static CUDA runtime (the driver is found at run time).
# RTP_CUDA_ARCHITECTURES: "90a" by default; packaging/cuda says what a release has.

set(RTP_CUDA_ARCHITECTURES "90a" CACHE STRING "GPU architectures, as CMAKE_CUDA_ARCHITECTURES")
set(CMAKE_CUDA_ARCHITECTURES "${RTP_CUDA_ARCHITECTURES}")
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old: 12.8 or newer is needed")
endif()
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${RTP_CUDA_ARCHITECTURES}")

file(GLOB RTP_CUDA_SOURCES CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/csrc/device/cuda/*.cu"
     "${CMAKE_SOURCE_DIR}/csrc/device/cuda/*.cc")
list(SORT RTP_CUDA_SOURCES)
# Compiled once, for librtp_cuda.so and for the programs that call kernels without an engine around them.
add_library(rtp_cuda_objects OBJECT ${RTP_CUDA_SOURCES})
set(RTP_CUDA_INCLUDES "${CMAKE_SOURCE_DIR}/csrc" ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
# --fmad=false: a product and a sum are fused where the code says so and nowhere else, as on the CPU.
set(RTP_CUDA_OPTIONS
  $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false --expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra,-ffp-contract=off>
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -ffp-contract=off>)
# By name and not as a target: rtp_core's public flags are for g++ alone.
set(RTP_CUDA_LIBRARIES "$<TARGET_FILE:rtp_core>" Threads::Threads ${CMAKE_DL_LIBS} rt)
target_include_directories(rtp_cuda_objects PRIVATE ${RTP_CUDA_INCLUDES})
target_compile_options(rtp_cuda_objects PRIVATE ${RTP_CUDA_OPTIONS})
add_library(rtp_cuda SHARED $<TARGET_OBJECTS:rtp_cuda_objects>)
target_link_libraries(rtp_cuda PRIVATE ${RTP_CUDA_LIBRARIES})
add_dependencies(rtp_cuda rtp_core)
target_link_options(rtp_cuda PRIVATE "LINKER:--version-script=${CMAKE_SOURCE_DIR}/cmake/cpu_exports.map")
set_property(TARGET rtp_cuda PROPERTY CUDA_RUNTIME_LIBRARY Static)
set_target_properties(rtp_cuda PROPERTIES
  LINKER_LANGUAGE CUDA
  LIBRARY_OUTPUT_DIRECTORY "${RTP_LIB_DIR}"
  BUILD_RPATH "$ORIGIN;${UCX_ROOT}/lib"
  INSTALL_RPATH "$ORIGIN;$ORIGIN/../../libucx/lib")
install(TARGETS rtp_cuda LIBRARY DESTINATION "${RTP_INSTALL_LIB_DIR}" COMPONENT cuda)  # a wheel of its own
set_property(GLOBAL APPEND PROPERTY RTP_CPU_TARGETS rtp_cuda)

# A program of one file and the backend's objects: <build dir>/<directory>/<name>.
function(rtp_cuda_program source directory)
  get_filename_component(name "${source}" NAME_WE)
  add_executable(${name} "${source}" $<TARGET_OBJECTS:rtp_cuda_objects>)
  target_include_directories(${name} PRIVATE ${RTP_CUDA_INCLUDES})
  target_compile_options(${name} PRIVATE ${RTP_CUDA_OPTIONS})
  target_link_libraries(${name} PRIVATE ${RTP_CUDA_LIBRARIES})
  add_dependencies(${name} rtp_core)
  set_target_properties(${name} PROPERTIES
    CUDA_RUNTIME_LIBRARY Static
    LINKER_LANGUAGE CUDA
    RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/${directory}"
    BUILD_RPATH "${RTP_LIB_DIR};${UCX_ROOT}/lib")
endfunction()
