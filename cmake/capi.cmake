# SPDX-License-Identifier: Apache-2.0
# libfastfer_engine, the engine for C: of fastfer_core only what it needs. Its install component, engine, has the header,
# a package for find_package(fastfer) and fastfer.pc, too; a build of the Python module makes it only when asked for.

file(STRINGS csrc/capi/fastfer.h abi REGEX "^#define FASTFER_ABI [0-9]+$")
string(REGEX REPLACE "^.* " "" FF_ABI "${abi}")
file(STRINGS fastfer/_version.py version REGEX "^__version__ = ")
string(REGEX REPLACE "^.*\"(.*)\"$" "\\1" FF_VERSION "${version}")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS csrc/capi/fastfer.h fastfer/_version.py)

add_library(fastfer_engine SHARED csrc/capi/engine.cpp csrc/capi/json.cpp csrc/capi/metadata.cpp)
target_compile_definitions(fastfer_engine PRIVATE FASTFER_BUILDS_ENGINE FASTFER_VERSION="${FF_VERSION}")
target_compile_options(fastfer_engine PRIVATE -O2 -Wall -Wextra)
target_include_directories(fastfer_engine PUBLIC $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/csrc/capi> $<INSTALL_INTERFACE:include>)
target_link_libraries(fastfer_engine PRIVATE fastfer_core)
set_target_properties(fastfer_engine PROPERTIES VERSION ${FF_ABI}.${FF_VERSION} SOVERSION ${FF_ABI} EXPORT_NAME engine
                      VISIBILITY_INLINES_HIDDEN ON
                      LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
ff_portable(fastfer_engine)
# Symbols of the C++ library stay inside, its templates', too.
if(APPLE)
  target_link_options(fastfer_engine PRIVATE -Wl,-exported_symbol,_fastfer_*)
else()
  file(CONFIGURE OUTPUT ${FF_GENERATED}/exports.map CONTENT "FASTFER_${FF_ABI} { global: fastfer_*; local: *; };\n")
  # nodelete: the engine's threads sleep in its code to the end of the process.
  target_link_options(fastfer_engine PRIVATE -Wl,--version-script=${FF_GENERATED}/exports.map -Wl,-z,nodelete -Wl,-z,defs)
endif()
if(FASTFER_SELFTEST)
  add_executable(capi tests/native/capi.cpp)
  target_link_libraries(capi PRIVATE fastfer_core fastfer_engine)
elseif(NOT FASTFER_CAPI)
  set_target_properties(fastfer_engine PROPERTIES EXCLUDE_FROM_ALL ON)
  return()
endif()

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package ${CMAKE_INSTALL_LIBDIR}/cmake/fastfer)
install(TARGETS fastfer_engine EXPORT fastfer LIBRARY COMPONENT engine)
install(FILES csrc/capi/fastfer.h TYPE INCLUDE COMPONENT engine)
install(EXPORT fastfer FILE fastfer-config.cmake NAMESPACE fastfer:: DESTINATION ${package} COMPONENT engine)
write_basic_package_version_file(${FF_GENERATED}/fastfer-config-version.cmake VERSION ${FF_VERSION} COMPATIBILITY SameMinorVersion)
install(FILES ${FF_GENERATED}/fastfer-config-version.cmake DESTINATION ${package} COMPONENT engine)
# From the file's own place, so that what is installed can be moved.
file(RELATIVE_PATH FF_PREFIX /p/${CMAKE_INSTALL_LIBDIR}/pkgconfig /p)
file(CONFIGURE OUTPUT ${FF_GENERATED}/fastfer.pc @ONLY CONTENT [[
prefix=${pcfiledir}/@FF_PREFIX@
libdir=${prefix}/@CMAKE_INSTALL_LIBDIR@
includedir=${prefix}/@CMAKE_INSTALL_INCLUDEDIR@

Name: fastfer
Description: Runs networks that fastfer compiled
Version: @FF_VERSION@
Cflags: -I${includedir}
Libs: -L${libdir} -lfastfer_engine
]])
install(FILES ${FF_GENERATED}/fastfer.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT engine)
