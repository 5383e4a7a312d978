// SPDX-License-Identifier: Apache-2.0
// Convolutions of maps of any type, and those that run one after another by strips, of one ISA: sums of float32 are
// those of FF_FLOATS, the ISA whose kernels of float32 it runs.
#include "engine/kernels/strips.h"

namespace ff {
namespace FF_ISA {

void take_engine_low(engine::Kernels& into) {
  into.conv = conv, into.depthwise = depthwise, into.gate = gate, into.convert = convert;
  into.strips_scratch = strips_scratch, into.strips = strips;
}

}  // namespace FF_ISA
}  // namespace ff
