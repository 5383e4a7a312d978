// SPDX-License-Identifier: Apache-2.0
#include "core/isa.h"

#include <array>
#include <atomic>
#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ff {
namespace {

// The compiler's runtime asks CPUID, and XGETBV whether the operating system saves the wider registers.
#define cpu(feature) static_cast<bool>(__builtin_cpu_supports(#feature))
#if defined(__x86_64__)
// Not all compilers know it by name; its registers are those of AVX2.
bool cpu_avxvnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}
#endif
#define FF_NEEDS_any(needs) needs
#if defined(__x86_64__)
#define FF_NEEDS_x86_64(needs) needs
#else
#define FF_NEEDS_x86_64(needs) false
#endif
#if defined(__aarch64__)
#define FF_NEEDS_aarch64(needs) needs
#else
#define FF_NEEDS_aarch64(needs) false
#endif
bool cpu_has(const char* isa) {
#define FF_ISA_ROW(name, machine, base, kernels, flags, needs) \
  if (std::strcmp(isa, #name) == 0) return FF_NEEDS_##machine(needs);
#include "isa.inc"
#undef FF_ISA_ROW
  return false;
}
#undef cpu

bool supported(Isa isa) {
  static const std::array<bool, static_cast<size_t>(Isa::count)> all = {
#define FF_SUPPORTED(name) cpu_has(#name),
      FF_EACH_ISA(FF_SUPPORTED)
#undef FF_SUPPORTED
  };
  return all[static_cast<size_t>(isa)];
}

Isa best() {
  int i = static_cast<int>(Isa::count) - 1;
  while (!supported(static_cast<Isa>(i))) --i;
  return static_cast<Isa>(i);
}

std::atomic<int> active{-1};

}  // namespace

const char* isa_name(Isa isa) {
  static const char* const names[] = {
#define FF_NAME(name) #name,
      FF_EACH_ISA(FF_NAME)
#undef FF_NAME
  };
  return names[static_cast<int>(isa)];
}

bool isa_has_ops(Isa isa) {
#define FF_OWN(name) (Isa::name == Isa::FF_OPS_##name),
  static constexpr bool own[] = {FF_EACH_ISA(FF_OWN)};
#undef FF_OWN
  return own[static_cast<int>(isa)];
}

bool isa_supported(Isa isa) { return supported(isa); }

Isa active_isa() {
  int isa = active.load(std::memory_order_relaxed);
  if (isa < 0) active.store(isa = static_cast<int>(best()), std::memory_order_relaxed);
  return static_cast<Isa>(isa);
}

bool set_isa(const char* name) {
  if (std::strcmp(name, "auto") == 0) {
    active.store(static_cast<int>(best()), std::memory_order_relaxed);
    return true;
  }
  for (int i = 0; i < static_cast<int>(Isa::count); ++i) {
    const Isa isa = static_cast<Isa>(i);
    if (std::strcmp(name, isa_name(isa)) == 0 && supported(isa)) {
      active.store(i, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace ff
