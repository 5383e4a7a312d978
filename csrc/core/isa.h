// SPDX-License-Identifier: Apache-2.0
// Instruction sets: what was compiled, what this CPU and its operating system run, what is used.
#pragma once
#include "isa_list.h"

namespace ff {

// The rows of isa.inc that this build has, best last.
enum class Isa : int {
#define FF_ENUM(name) name,
  FF_EACH_ISA(FF_ENUM)
#undef FF_ENUM
      count
};

const char* isa_name(Isa isa);
// False where the ops run as on another ISA: avx512bf16 has kernels of its own in the engine only.
bool isa_has_ops(Isa isa);
// The CPU has what isa.inc asks for, and its operating system saves the registers; where it is asked for by name.
bool isa_supported(Isa isa);
// What to say after a name that is not: of an ISA of this build what it lacks, of others nothing.
const char* isa_refusal(const char* name);
// The best supported one, unless set_isa chose another.
Isa active_isa();
// False, and nothing changes, for an unknown or unsupported name; "auto" is the best supported one.
bool set_isa(const char* name);

}  // namespace ff
