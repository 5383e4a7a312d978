// SPDX-License-Identifier: Apache-2.0
#include "core/dispatch.h"

#include "core/kernels.h"

namespace ff {

#define FF_KERNEL(name, Params) void name(const Params&);
namespace baseline {
#include "kernels.inc"
}
#if FF_X86
namespace avx2 {
#include "kernels.inc"
}
namespace avx512 {
#include "kernels.inc"
}
#elif FF_AARCH64
namespace neon {
#include "kernels.inc"
}
#endif
#undef FF_KERNEL

namespace {
constexpr int kIsas = static_cast<int>(Isa::count);

enum KernelIndex {
#define FF_KERNEL(name, Params) k_##name,
#include "kernels.inc"
#undef FF_KERNEL
  kKernels
};

idx calls[kKernels][kIsas];

const KernelInfo kTable[] = {
#define FF_KERNEL(name, Params) {#name, calls[k_##name]},
#include "kernels.inc"
#undef FF_KERNEL
};
}  // namespace

const KernelInfo* kernel_table(int* count) {
  *count = kKernels;
  return kTable;
}

#define FF_KERNEL(name, Params)                                                 \
  void name(const Params& params) {                                             \
    static constexpr void (*versions[])(const Params&) = {FF_VERSIONS(name)};   \
    const int isa = static_cast<int>(active_isa());                             \
    __atomic_fetch_add(&calls[k_##name][isa], 1, __ATOMIC_RELAXED);             \
    versions[isa](params);                                                      \
  }
#if FF_X86
// In the order of FF_EACH_ISA. avx512bf16 has kernels of its own in the engine only.
#define FF_VERSIONS(name) baseline::name, avx2::name, avx512::name, avx512::name
#elif FF_AARCH64
#define FF_VERSIONS(name) baseline::name, neon::name
#else
#define FF_VERSIONS(name) baseline::name
#endif
#include "kernels.inc"
#undef FF_KERNEL

}  // namespace ff
