# What every target of the engine shares.

# Numerics: contraction is off everywhere (an FMA is written where it is meant) and no flag may
# reorder or assume finite arithmetic. The two -fno flags change no result.
add_library(rtp_flags INTERFACE)
target_include_directories(rtp_flags INTERFACE "${CMAKE_SOURCE_DIR}/csrc")
target_compile_options(rtp_flags INTERFACE
  -Wall -Wextra -ffp-contract=off -fno-math-errno -fno-trapping-math -fno-semantic-interposition)
target_link_libraries(rtp_flags INTERFACE Threads::Threads ${CMAKE_DL_LIBS})
if(RTP_SANITIZE STREQUAL "address")
  set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
elseif(RTP_SANITIZE STREQUAL "thread")
  set(sanitizers -fsanitize=thread)
elseif(RTP_SANITIZE)
  message(FATAL_ERROR "RTP_SANITIZE is '${RTP_SANITIZE}'; address, thread and empty are known")
endif()
target_compile_options(rtp_flags INTERFACE ${sanitizers})
target_link_options(rtp_flags INTERFACE ${sanitizers})

set(RTP_LIB_DIR "${RTP_OUTPUT_DIR}/lib")
set(RTP_INSTALL_LIB_DIR "lib")

# Sources of one directory, not below it. CONFIGURE_DEPENDS: a new file needs no edit here.
function(rtp_glob out directory)
  file(GLOB found CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/${directory}/*.cc")
  list(SORT found)
  set(${out} ${found} PARENT_SCOPE)
endfunction()

# A shared library in lib/: finds its siblings in its own directory, UCX in the wheel beside us.
function(rtp_library target)
  set_target_properties(${target} PROPERTIES
    LIBRARY_OUTPUT_DIRECTORY "${RTP_LIB_DIR}"
    BUILD_RPATH "$ORIGIN;${UCX_ROOT}/lib"
    INSTALL_RPATH "$ORIGIN;$ORIGIN/../../libucx/lib")
  install(TARGETS ${target} LIBRARY DESTINATION "${RTP_INSTALL_LIB_DIR}")
endfunction()
