# benchmarks/cpp/<name>.cc becomes <build dir>/benchmarks/<name>, linked to rtp_core.

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
