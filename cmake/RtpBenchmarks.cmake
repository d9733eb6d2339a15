# benchmarks/cpp/<name>.cc becomes <build dir>/benchmarks/<name>, linked to rtp_core. With RTP_CUDA,
# benchmarks/cuda/linear_bench.cu too where the toolkit has cuBLASLt, which it compares with.

rtp_glob(benchmark_sources "benchmarks/cpp")
get_property(RTP_CPU_TARGETS GLOBAL PROPERTY RTP_CPU_TARGETS)
foreach(source IN LISTS benchmark_sources)
  get_filename_component(name "${source}" NAME_WE)
  add_executable(bench_${name} "${source}")
  target_link_libraries(bench_${name} PRIVATE rtp_core ucx::ucp ucx::ucs)
  set_target_properties(bench_${name} PROPERTIES
    OUTPUT_NAME ${name}
    RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/benchmarks"
    BUILD_RPATH "${RTP_LIB_DIR};${UCX_ROOT}/lib")
  if(RTP_CPU_TARGETS)
    add_dependencies(bench_${name} ${RTP_CPU_TARGETS})
  endif()
endforeach()

if(RTP_CUDA)
  find_library(RTP_CUBLASLT cublasLt HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES})
  if(RTP_CUBLASLT)
    rtp_cuda_program("${CMAKE_SOURCE_DIR}/benchmarks/cuda/linear_bench.cu" benchmarks)
    target_link_libraries(linear_bench PRIVATE "${RTP_CUBLASLT}")
  else()
    message(STATUS "linear_bench is left out: no cuBLASLt in ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES}")
  endif()
endif()
