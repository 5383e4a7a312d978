// SPDX-License-Identifier: Apache-2.0
// Declarations of all kernels, as the bindings and the self-test call them: the active ISA's version runs.
#pragma once
#include "attention/op.h"
#include "bottleneck/op.h"
#include "cbam/op.h"
#include "conv2d/op.h"
#include "coordinate/op.h"
#include "elementwise/op.h"
#include "gate/op.h"
#include "loss/op.h"
#include "norm/op.h"
#include "pool/op.h"
#include "separable_conv/op.h"

namespace ff {

#define FF_KERNEL(name, Params) void name(const Params&);
#include "kernels.inc"
#undef FF_KERNEL

}  // namespace ff
