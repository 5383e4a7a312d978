// SPDX-License-Identifier: Apache-2.0
#include "core/isa.h"

#include <atomic>
#include <cstring>

#if FF_X86
#include <cpuid.h>
#endif

namespace ff {
namespace {

#if FF_X86
struct Cpu {
  bool avx2 = false, avx512 = false, avx512bf16 = false;

  Cpu() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const bool osxsave = c & (1u << 27), fma = c & (1u << 12), avx = c & (1u << 28);
    if (!osxsave || !avx) return;
    unsigned lo = 0, hi = 0;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    const bool ymm = (lo & 0x6) == 0x6, zmm = (lo & 0xe6) == 0xe6;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    avx2 = ymm && fma && (b & (1u << 5));
    const unsigned f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31;
    avx512 = zmm && avx2 && (b & f) && (b & dq) && (b & bw) && (b & vl);
    const bool vnni = c & (1u << 11);
    unsigned a1 = 0, b1 = 0, c1 = 0, d1 = 0;
    if (__get_cpuid_count(7, 1, &a1, &b1, &c1, &d1)) avx512bf16 = avx512 && vnni && (a1 & (1u << 5));
  }
};

bool supported(Isa isa) {
  static const Cpu cpu;
  switch (isa) {
    case Isa::baseline: return true;
    case Isa::avx2: return cpu.avx2;
    case Isa::avx512: return cpu.avx512;
    case Isa::avx512bf16: return cpu.avx512bf16;
    default: return false;
  }
}
#else
bool supported(Isa isa) { return isa < Isa::count; }
#endif

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

#if FF_X86
bool isa_has_ops(Isa isa) { return isa != Isa::avx512bf16; }
#else
bool isa_has_ops(Isa) { return true; }
#endif

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
