# librtp_cuda.so: csrc/device/cuda, opened with dlopen like the CPU backends; one C factory is exported.
#
# Needs nvcc 12.8 or newer and cuBLASLt: a CUDA toolkit, or NVIDIA's wheels (nvidia-cublas) beside the Python that
# builds. RTP_CUDA_ARCHITECTURES: "90a" by default; "80;86;89;90a;100;120-virtual" is what a release has.

set(RTP_CUDA_ARCHITECTURES "90a" CACHE STRING "GPU architectures, as CMAKE_CUDA_ARCHITECTURES")
set(CMAKE_CUDA_ARCHITECTURES "${RTP_CUDA_ARCHITECTURES}")
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old: 12.8 or newer is needed")
endif()

# cuBLASLt: of the toolkit, else of NVIDIA's wheel.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c
          "import importlib.util as u; s = u.find_spec('nvidia'); print(';'.join(s.submodule_search_locations) if s else '')"
  OUTPUT_VARIABLE nvidia_wheels OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
set(cublas_include_hints ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
set(cublas_library_hints ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES})
foreach(directory IN LISTS nvidia_wheels)
  list(APPEND cublas_include_hints "${directory}/cu13/include" "${directory}/cublas/include")
  list(APPEND cublas_library_hints "${directory}/cu13/lib" "${directory}/cublas/lib")
endforeach()
find_path(RTP_CUBLAS_INCLUDE cublasLt.h HINTS ${cublas_include_hints})
find_library(RTP_CUBLASLT NAMES cublasLt libcublasLt.so.13 libcublasLt.so.12 HINTS ${cublas_library_hints})
if(NOT RTP_CUBLAS_INCLUDE OR NOT RTP_CUBLASLT)
  message(FATAL_ERROR "cuBLASLt is not found: install a CUDA toolkit with it, or pip install nvidia-cublas")
endif()
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER_VERSION}, cuBLASLt: ${RTP_CUBLASLT}")

file(GLOB RTP_CUDA_SOURCES CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/csrc/device/cuda/*.cu"
     "${CMAKE_SOURCE_DIR}/csrc/device/cuda/*.cc")
list(SORT RTP_CUDA_SOURCES)
add_library(rtp_cuda SHARED ${RTP_CUDA_SOURCES})
target_include_directories(rtp_cuda PRIVATE "${CMAKE_SOURCE_DIR}/csrc" "${RTP_CUBLAS_INCLUDE}"
                           ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
# --fmad=false: a product and a sum are fused where the code says so and nowhere else, as on the CPU.
target_compile_options(rtp_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false --expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra,-ffp-contract=off>
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -ffp-contract=off>)
target_link_libraries(rtp_cuda PRIVATE rtp_core "${RTP_CUBLASLT}" Threads::Threads ${CMAKE_DL_LIBS})
target_link_options(rtp_cuda PRIVATE "LINKER:--version-script=${CMAKE_SOURCE_DIR}/cmake/cpu_exports.map")
set_target_properties(rtp_cuda PROPERTIES
  CUDA_RUNTIME_LIBRARY Static
  LIBRARY_OUTPUT_DIRECTORY "${RTP_LIB_DIR}"
  # Beside rtp_core; cuBLASLt in the wheel beside us, where there is one.
  BUILD_RPATH "$ORIGIN"
  INSTALL_RPATH "$ORIGIN;$ORIGIN/../../nvidia/cu13/lib;$ORIGIN/../../nvidia/cublas/lib")
install(TARGETS rtp_cuda LIBRARY DESTINATION "${RTP_INSTALL_LIB_DIR}")
