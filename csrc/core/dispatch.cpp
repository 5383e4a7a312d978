// SPDX-License-Identifier: Apache-2.0
#include "core/dispatch.h"

#include "core/kernels.h"
#include "primitives/table.h"

namespace ff {

#define FF_DECLARE(isa, name, Params) \
  namespace isa {                     \
  void name(const Params&);           \
  }
#define FF_KERNEL(name, Params) FF_EACH_ISA_WITH(FF_DECLARE, name, Params)
#define FF_PASS(name, Params) FF_DECLARE(passes, name, Params)
#include "kernels.inc"
#undef FF_KERNEL
#undef FF_DECLARE

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

#define FF_VERSION(isa, name) FF_OPS_##isa::name,
#define FF_KERNEL(name, Params)                                                                \
  void name(const Params& params) {                                                            \
    static constexpr void (*versions[])(const Params&) = {FF_EACH_ISA_WITH(FF_VERSION, name)}; \
    const int isa = static_cast<int>(active_isa());                                            \
    __atomic_fetch_add(&calls[k_##name][isa], 1, __ATOMIC_RELAXED);                            \
    versions[isa](params);                                                                     \
  }
#define FF_PASS(name, Params)                                                         \
  void name(const Params& params) {                                                   \
    const Isa isa = active_isa();                                                     \
    __atomic_fetch_add(&calls[k_##name][static_cast<int>(isa)], 1, __ATOMIC_RELAXED); \
    const IsaScope scope(isa);                                                        \
    passes::name(params);                                                             \
  }
#include "kernels.inc"
#undef FF_KERNEL
#undef FF_VERSION

}  // namespace ff
