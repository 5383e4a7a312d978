# SPDX-License-Identifier: Apache-2.0
# pybind11, its headers from a copy in the build folder. pip builds in an environment of its own, which has a new path
# every time: with that path in its commands, a second install would compile all bindings again.

set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 CONFIG REQUIRED)
set(FF_PYBIND11 "${FF_GENERATED}/pybind11")
file(GLOB_RECURSE headers RELATIVE "${pybind11_INCLUDE_DIR}" "${pybind11_INCLUDE_DIR}/pybind11/*.h")
foreach(header IN LISTS headers)
  get_filename_component(folder "${FF_PYBIND11}/${header}" DIRECTORY)
  file(MAKE_DIRECTORY "${folder}")
  file(COPY_FILE "${pybind11_INCLUDE_DIR}/${header}" "${FF_PYBIND11}/${header}" ONLY_IF_DIFFERENT)
endforeach()
set_target_properties(pybind11::pybind11_headers PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${FF_PYBIND11}")
