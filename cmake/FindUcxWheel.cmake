# UCX from the PyPI wheel libucx-cu12, found through the Python interpreter. Defines the imported
# targets ucx::ucp and ucx::ucs, and UCX_ROOT, the wheel's package directory.
#
# The wheel is a build requirement (headers) and a run-time dependency (shared libraries, which lie
# beside our package in site-packages: the installed run path is relative).

execute_process(
  COMMAND "${Python_EXECUTABLE}" -c
          "import importlib.util as u; print(u.find_spec('libucx').submodule_search_locations[0])"
  OUTPUT_VARIABLE UCX_ROOT
  OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_QUIET
  RESULT_VARIABLE UCX_LOOKUP)
if(NOT UCX_LOOKUP EQUAL 0 OR NOT EXISTS "${UCX_ROOT}/include/ucp/api/ucp.h")
  message(FATAL_ERROR
    "UCX's wheel is not installed for ${Python_EXECUTABLE}: pip install libucx-cu12==1.22.0")
endif()
message(STATUS "UCX: ${UCX_ROOT}")

foreach(library ucp ucs)
  if(NOT TARGET ucx::${library})
    add_library(ucx::${library} SHARED IMPORTED)
    set_target_properties(ucx::${library} PROPERTIES
      IMPORTED_LOCATION "${UCX_ROOT}/lib/lib${library}.so.0"
      IMPORTED_SONAME "lib${library}.so.0"
      INTERFACE_INCLUDE_DIRECTORIES "${UCX_ROOT}/include")
  endif()
endforeach()
