// SPDX-License-Identifier: Apache-2.0
// Gates on channels and pixels: vectorised over channels, parallel over images or bands of rows. Tasks are cut by shape
// alone, and partial sums are merged in their order, so that results do not depend on the number of threads.
#include "gate/backward.h"
#include "gate/forward.h"

namespace ff {
namespace FF_ISA {

void gate_fwd_f32(const GateParams& p) { gate_forward<float>(p, false); }
void gate_fwd_f64(const GateParams& p) { gate_forward<double>(p, false); }
void gate_train_f32(const GateParams& p) { gate_forward<float>(p, true); }
void gate_train_f64(const GateParams& p) { gate_forward<double>(p, true); }
void gate_bwd_f32(const GateParams& p) { gate_backward<float>(p); }
void gate_bwd_f64(const GateParams& p) { gate_backward<double>(p); }

}  // namespace FF_ISA
}  // namespace ff
