// SPDX-License-Identifier: Apache-2.0
// Declarations of all kernels, as the bindings and the self-test call them: the active ISA's version runs. A caller
// includes the op.h of its family for the parameters.
#pragma once
namespace ff {

#define FF_KERNEL(name, Params) \
  struct Params;                \
  void name(const Params&);
#include "kernels.inc"
#undef FF_KERNEL

}  // namespace ff
