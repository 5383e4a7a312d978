// SPDX-License-Identifier: Apache-2.0
#include "primitives/table.h"

namespace ff {

#define FF_TABLES(isa)                                 \
  namespace isa {                                      \
  extern const Registers registers;                    \
  extern const GemmKernels<float> gemm_f32;            \
  extern const GemmKernels<double> gemm_f64;           \
  extern const NormKernels<float> norm_f32;            \
  extern const NormKernels<double> norm_f64;           \
  extern const DepthwiseKernels<float> depthwise_f32;  \
  extern const DepthwiseKernels<double> depthwise_f64; \
  }
#define FF_OPS_TABLES(isa) FF_OPS_NAMED(FF_OPS_##isa)
#define FF_OPS_NAMED(isa) FF_TABLES(isa)
FF_EACH_ISA(FF_OPS_TABLES)

namespace {

thread_local Isa running = Isa::baseline;

}  // namespace

#define FF_ROW_f32(isa) \
  {FF_OPS_##isa::registers, FF_OPS_##isa::gemm_f32, FF_OPS_##isa::norm_f32, FF_OPS_##isa::depthwise_f32},
#define FF_ROW_f64(isa) \
  {FF_OPS_##isa::registers, FF_OPS_##isa::gemm_f64, FF_OPS_##isa::norm_f64, FF_OPS_##isa::depthwise_f64},

template <>
const Primitives<float>& primitives<float>() {
  static const Primitives<float> all[] = {FF_EACH_ISA(FF_ROW_f32)};
  return all[static_cast<int>(running)];
}

template <>
const Primitives<double>& primitives<double>() {
  static const Primitives<double> all[] = {FF_EACH_ISA(FF_ROW_f64)};
  return all[static_cast<int>(running)];
}

Isa running_isa() { return running; }

IsaScope::IsaScope(Isa isa) : before_(running) { running = isa; }

IsaScope::~IsaScope() { running = before_; }

}  // namespace ff
