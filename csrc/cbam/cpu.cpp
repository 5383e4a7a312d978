// SPDX-License-Identifier: Apache-2.0
// CBAM and its two gates: one forward and one backward, each gate optional. Images are cut into tasks by shape alone,
// and sums over them are merged in order, so that results do not depend on the number of threads.
#include "cbam/backward.h"
#include "cbam/forward.h"

namespace ff {
namespace FF_ISA {

void cbam_fwd_f32(const CbamParams& p) { cbam_forward<float>(p); }
void cbam_fwd_f64(const CbamParams& p) { cbam_forward<double>(p); }
void cbam_train_f32(const CbamParams& p) { cbam_forward<float>(p); }
void cbam_train_f64(const CbamParams& p) { cbam_forward<double>(p); }
void cbam_bwd_f32(const CbamParams& p) { cbam_backward<float>(p); }
void cbam_bwd_f64(const CbamParams& p) { cbam_backward<double>(p); }
void channel_gate_fwd_f32(const CbamParams& p) { cbam_forward<float>(p); }
void channel_gate_fwd_f64(const CbamParams& p) { cbam_forward<double>(p); }
void channel_gate_train_f32(const CbamParams& p) { cbam_forward<float>(p); }
void channel_gate_train_f64(const CbamParams& p) { cbam_forward<double>(p); }
void channel_gate_bwd_f32(const CbamParams& p) { cbam_backward<float>(p); }
void channel_gate_bwd_f64(const CbamParams& p) { cbam_backward<double>(p); }
void spatial_gate_fwd_f32(const CbamParams& p) { cbam_forward<float>(p); }
void spatial_gate_fwd_f64(const CbamParams& p) { cbam_forward<double>(p); }
void spatial_gate_train_f32(const CbamParams& p) { cbam_forward<float>(p); }
void spatial_gate_train_f64(const CbamParams& p) { cbam_forward<double>(p); }
void spatial_gate_bwd_f32(const CbamParams& p) { cbam_backward<float>(p); }
void spatial_gate_bwd_f64(const CbamParams& p) { cbam_backward<double>(p); }

}  // namespace FF_ISA
}  // namespace ff
