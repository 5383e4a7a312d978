# SPDX-License-Identifier: Apache-2.0
# The instruction sets of this build, from csrc/isa.inc:
#   FF_ISAS              their names, best last
#   FF_PARTS_<isa>       what it has kernels of its own of: some of FF_ENGINE_PARTS, and ops
#   FF_OF_<part>_<isa>   the ISA whose kernels of a part it runs; of ops, its vectors are simd/<name>.h too
#   FF_FLAGS_<isa>       for the compiler
# and isa_list.h in ${FF_GENERATED}, which C++ expands.

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(machine x86_64)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(machine aarch64)
else()
  set(machine other)
endif()
if(FASTFER_BASELINE_ONLY)
  set(FASTFER_ISAS baseline)
elseif(DEFINED ENV{FASTFER_ISAS})
  set(FASTFER_ISAS "$ENV{FASTFER_ISAS}")
endif()
string(REPLACE "," ";" FASTFER_ISAS "${FASTFER_ISAS}")

set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/isa.inc")
file(STRINGS csrc/isa.inc rows REGEX "^FF_ISA_ROW")
set(FF_ENGINE_PARTS low bfloat16 bytes)
set(known "")
set(FF_ISAS "")
foreach(row IN LISTS rows)
  if(NOT row MATCHES "^FF_ISA_ROW\\(([a-z0-9]+), (any|x86_64|aarch64), ([a-z0-9]+), ([a-z0-9 ]+), \"([^\"]*)\", .+\\)$")
    message(FATAL_ERROR "csrc/isa.inc: expected FF_ISA_ROW(name, machine, base, kernels, \"flags\", needs), got ${row}")
  endif()
  set(isa ${CMAKE_MATCH_1})
  set(base ${CMAKE_MATCH_3})
  string(REPLACE " " ";" FF_PARTS_${isa} "${CMAKE_MATCH_4}")
  string(REPLACE " " ";" FF_FLAGS_${isa} "${CMAKE_MATCH_5}")
  if(CMAKE_MATCH_2 STREQUAL any OR CMAKE_MATCH_2 STREQUAL machine)
    list(APPEND known ${isa})
  endif()
  if(FF_PARTS_${isa} STREQUAL all)
    set(FF_PARTS_${isa} ops ${FF_ENGINE_PARTS})
  endif()
  set(FF_NEEDS_${isa} "")
  foreach(part IN ITEMS ops ${FF_ENGINE_PARTS})
    if(part IN_LIST FF_PARTS_${isa})
      set(FF_OF_${part}_${isa} ${isa})
    else()
      set(FF_OF_${part}_${isa} ${FF_OF_${part}_${base}})
      list(APPEND FF_NEEDS_${isa} ${FF_OF_${part}_${base}})
    endif()
  endforeach()
endforeach()
foreach(isa IN LISTS FASTFER_ISAS)
  if(NOT isa IN_LIST known)
    message(FATAL_ERROR "FASTFER_ISAS: expected some of ${known}, got ${isa}")
  endif()
endforeach()
foreach(isa IN LISTS known)  # the baseline always, for CPUs that have nothing else
  if(NOT FASTFER_ISAS OR isa IN_LIST FASTFER_ISAS OR isa STREQUAL baseline)
    foreach(needed IN LISTS FF_NEEDS_${isa})
      if(NOT needed IN_LIST FF_ISAS)
        message(FATAL_ERROR "FASTFER_ISAS: ${isa} needs ${needed} besides")
      endif()
    endforeach()
    list(APPEND FF_ISAS ${isa})
  endif()
endforeach()

set(each "")
set(with "")
set(ops "")
foreach(isa IN LISTS FF_ISAS)
  string(APPEND each " X(${isa})")
  string(APPEND with " X(${isa}, __VA_ARGS__)")
  foreach(part IN ITEMS ops ${FF_ENGINE_PARTS})
    string(TOUPPER ${part} upper)
    string(APPEND ops "#define FF_${upper}_${isa} ${FF_OF_${part}_${isa}}\n")
  endforeach()
endforeach()
set(FF_GENERATED "${CMAKE_CURRENT_BINARY_DIR}/generated")
file(CONFIGURE OUTPUT "${FF_GENERATED}/isa_list.h" CONTENT "// Written by cmake/isa.cmake from csrc/isa.inc.
#pragma once
// X(name) for each ISA of this build, best last; X(name, ...) with what the macro is given besides.
#define FF_EACH_ISA(X)${each}
#define FF_EACH_ISA_WITH(X, ...)${with}
// The ISA whose kernels the ops, float32 among them, and each part of low precision run.
${ops}" @ONLY)
