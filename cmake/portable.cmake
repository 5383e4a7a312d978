# SPDX-License-Identifier: Apache-2.0
# ff_portable(TARGET): what is built runs on every Linux with glibc 2.28 or later, whatever this machine's is. The C++
# library is linked in; symbols of glibc are asked for in their oldest versions (csrc/core/old_glibc.cpp). On other
# systems, and with another C++ library, it does nothing.

include(CheckCXXSourceCompiles)
check_cxx_source_compiles("#include <string>
#if !defined(__GLIBC__) || !defined(__GLIBCXX__) || !(defined(__x86_64__) || defined(__aarch64__))
#error
#endif
int main() {}" FF_HAS_GLIBC)
file(STRINGS csrc/core/old_glibc.cpp rows REGEX "^FF_OLD\\(")
set(FF_WRAPPED "")
foreach(row IN LISTS rows)
  string(REGEX REPLACE "^FF_OLD\\([^,]*, ([a-z_]+),.*" "-Wl,--wrap=\\1" option "${row}")
  list(APPEND FF_WRAPPED ${option})
endforeach()
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS csrc/core/old_glibc.cpp)

function(ff_portable target)
  if(NOT FF_HAS_GLIBC OR NOT FASTFER_PORTABLE OR FASTFER_SANITIZE)
    return()
  endif()
  target_sources(${target} PRIVATE csrc/core/old_glibc.cpp)
  # Until 2.34 pthread_create and dlopen were in libraries of their own, which a program need not have loaded.
  target_link_options(${target} PRIVATE -static-libstdc++ -Wl,--gc-sections -Wl,--exclude-libs,ALL ${FF_WRAPPED}
                      -Wl,--push-state,--no-as-needed -l:libpthread.so.0 -l:libdl.so.2 -Wl,--pop-state)
endfunction()
