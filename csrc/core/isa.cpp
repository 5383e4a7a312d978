// SPDX-License-Identifier: Apache-2.0
#include "core/isa.h"

#include <array>
#include <atomic>
#include <cstring>
#include <string>

#include "core/system.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ff {
namespace {

// What is missing first, by name.
[[maybe_unused]] bool has(const char* feature, bool there, std::string& lacks) {
  if (!there && lacks.empty()) lacks = feature;
  return there;
}

// The compiler's runtime asks CPUID, and XGETBV whether the operating system saves the wider registers.
#define cpu(feature) has(#feature, static_cast<bool>(__builtin_cpu_supports(#feature)), lacks)
#if defined(__x86_64__)
// Bit `bit` of what CPUID says of 7, `leaf`: not all compilers know these by name.
bool cpuid7(unsigned leaf, int which, int bit) {
  unsigned at[4] = {};
  return __get_cpuid_count(7, leaf, &at[0], &at[1], &at[2], &at[3]) && (at[which] >> bit & 1);
}
#define cpu_avxvnni() has("avxvnni", cpuid7(1, 0, 4), lacks)  // its registers are those of AVX2

// Whether the operating system saves tile configurations and tiles, which XGETBV tells.
bool saves_tiles() {
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low >> 17 & 3) == 3;
}
bool cpu_tiles(std::string& lacks) {
  if (!has("amx_tile", cpuid7(0, 3, 24), lacks) || !has("amx_bf16", cpuid7(0, 3, 22), lacks) ||
      !has("amx_int8", cpuid7(0, 3, 25), lacks) || !has("tile registers that are saved", saves_tiles(), lacks))
    return false;
  const std::string refusal = tile_refusal();
  return has(refusal.c_str(), refusal.empty(), lacks);
}
#endif
// Of an ARM CPU: bit `bit` of word `word` of what the system says.
#define hwcap(feature, word, bit) has(#feature, cpu_bits(word) >> bit & 1, lacks)
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
// by_name: somebody asks for it. lacks: what is not there, where something is not.
bool cpu_has(const char* isa, bool by_name, std::string& lacks) {
  (void)by_name, (void)lacks;
#define FF_ISA_ROW(name, machine, base, kernels, flags, needs) \
  if (std::strcmp(isa, #name) == 0) return FF_NEEDS_##machine(needs);
#include "isa.inc"
#undef FF_ISA_ROW
  return false;
}
#undef cpu
#undef hwcap
#undef cpu_avxvnni

struct Support {
  bool by_name, unasked;
  std::string refusal;
};

const Support& support(Isa isa) {
  static const auto all = [] {
    std::array<Support, static_cast<size_t>(Isa::count)> each;
    for (int i = 0; i < static_cast<int>(Isa::count); ++i) {
      const char* name = isa_name(static_cast<Isa>(i));
      std::string lacks;
      const bool by_name = cpu_has(name, true, lacks);
      each[static_cast<size_t>(i)] = {by_name, by_name && cpu_has(name, false, lacks),
                                      by_name ? "" : ": this CPU or its operating system lacks " + lacks};
    }
    return each;
  }();
  return all[static_cast<size_t>(isa)];
}

Isa best() {
  int i = static_cast<int>(Isa::count) - 1;
  while (!support(static_cast<Isa>(i)).unasked) --i;
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

bool isa_supported(Isa isa) { return support(isa).by_name; }

const char* isa_refusal(const char* name) {
  for (int i = 0; i < static_cast<int>(Isa::count); ++i) {
    const Isa isa = static_cast<Isa>(i);
    if (std::strcmp(name, isa_name(isa)) == 0) return support(isa).refusal.c_str();
  }
  return "";
}

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
    if (std::strcmp(name, isa_name(isa)) == 0 && isa_supported(isa)) {
      active.store(i, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace ff
