# librtp_cpu_<isa>.so: csrc/device/cpu compiled once per SIMD level. One C factory is exported; all
# else, inline templates of headers too, stays local, so that code for a higher level can never be
# picked by the linker for a lower one.
#
# RTP_CPU_ISAS names the levels that are built. Each level's sources see RTP_CPU_ISA (a string) and the compiler's own
# __AVX2__, __AVX512BF16__, __AMX_BF16__.

rtp_glob(RTP_CPU_SOURCES "csrc/device/cpu")

foreach(isa IN LISTS RTP_CPU_ISAS)
  if(NOT isa MATCHES "^(generic|avx2|avx512bf16|amxbf16)$")
    message(FATAL_ERROR "RTP_CPU_ISAS has '${isa}'; generic, avx2, avx512bf16 and amxbf16 are known")
  endif()
endforeach()

function(rtp_cpu_backend isa)
  if(NOT isa IN_LIST RTP_CPU_ISAS)
    return()
  endif()
  foreach(flag IN LISTS ARGN)
    string(MAKE_C_IDENTIFIER "RTP_HAS${flag}" known)
    check_cxx_compiler_flag("${flag}" ${known})
    if(NOT ${known})
      message(STATUS "CPU backend ${isa}: left out, the compiler does not know ${flag}")
      return()
    endif()
  endforeach()
  set(target rtp_cpu_${isa})
  add_library(${target} SHARED ${RTP_CPU_SOURCES})
  target_compile_definitions(${target} PRIVATE RTP_CPU_ISA="${isa}")
  target_compile_options(${target} PRIVATE ${ARGN})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # False alarms inside the compiler's own intrinsics headers (GCC bug 105593).
    target_compile_options(${target} PRIVATE -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  target_link_libraries(${target} PRIVATE rtp_core)
  target_link_options(${target} PRIVATE
    "LINKER:--version-script=${CMAKE_SOURCE_DIR}/cmake/cpu_exports.map")
  set_property(TARGET ${target} PROPERTY LINK_DEPENDS "${CMAKE_SOURCE_DIR}/cmake/cpu_exports.map")
  rtp_library(${target})
  set_property(GLOBAL APPEND PROPERTY RTP_CPU_TARGETS ${target})
endfunction()

if(RTP_CPU_SOURCES)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    rtp_cpu_backend(generic -march=x86-64-v2)
    rtp_cpu_backend(avx2 -march=x86-64-v3)
    rtp_cpu_backend(avx512bf16 -march=x86-64-v4 -mavx512bf16)
    rtp_cpu_backend(amxbf16 -march=x86-64-v4 -mavx512bf16 -mamx-tile -mamx-bf16)
  else()
    rtp_cpu_backend(generic)
  endif()
endif()
