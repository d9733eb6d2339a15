# librtp_core.so: every room but the backends and the bindings. Symbols are visible by default, as
# the bindings, the backends and the tests link to it.

set(RTP_CORE_ROOMS tensor device kv handover model transfer engine)
set(RTP_CORE_SOURCES "")
foreach(room IN LISTS RTP_CORE_ROOMS)
  rtp_glob(sources "csrc/${room}")
  list(APPEND RTP_CORE_SOURCES ${sources})
endforeach()

configure_file("${CMAKE_SOURCE_DIR}/cmake/version.cc.in" "${CMAKE_BINARY_DIR}/version.cc" @ONLY)
add_library(rtp_core SHARED "${CMAKE_BINARY_DIR}/version.cc" ${RTP_CORE_SOURCES})
target_link_libraries(rtp_core PUBLIC rtp_flags PRIVATE ucx::ucp ucx::ucs rt)
rtp_library(rtp_core)
