// SPDX-License-Identifier: Apache-2.0
// Instruction sets: what was compiled, what this CPU and its operating system run, what is used.
#pragma once

namespace ff {

// Best last. A build for another architecture than x86-64 or aarch64 has baseline only, and so has one that asks for that.
#if defined(FF_BASELINE_ONLY)
#define FF_EACH_ISA(X) X(baseline)
#elif defined(__x86_64__) || defined(_M_X64)
#define FF_X86 1
#define FF_EACH_ISA(X) X(baseline) X(avx2) X(avx512) X(avx512bf16)
#elif defined(__aarch64__)
#define FF_AARCH64 1
#define FF_EACH_ISA(X) X(baseline) X(neon)
#else
#define FF_EACH_ISA(X) X(baseline)
#endif

enum class Isa : int {
#define FF_ENUM(name) name,
  FF_EACH_ISA(FF_ENUM)
#undef FF_ENUM
      count
};

const char* isa_name(Isa isa);
// False where the ops run as on the ISA before: avx512bf16 has kernels of its own in the engine only.
bool isa_has_ops(Isa isa);
// From CPUID and XGETBV: the operating system must save the registers too.
bool isa_supported(Isa isa);
// The best supported one, unless set_isa chose another.
Isa active_isa();
// False, and nothing changes, for an unknown or unsupported name; "auto" is the best supported one.
bool set_isa(const char* name);

}  // namespace ff
