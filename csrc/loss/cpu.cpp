// SPDX-License-Identifier: Apache-2.0
// Centre loss, triplet loss, cross-entropy. Vectorised over features or classes, parallel over rows or blocks of
// columns. Work is cut into tasks by shape alone, and partial sums are merged in task order in float64, so that results
// do not depend on the number of threads.
#include "loss/center.h"
#include "loss/cross_entropy.h"
#include "loss/triplet.h"

namespace ff {
namespace FF_ISA {

void center_loss_fwd_f32(const CenterParams& p) { center_forward<float>(p); }
void center_loss_fwd_f64(const CenterParams& p) { center_forward<double>(p); }
void center_loss_bwd_f32(const CenterParams& p) { center_backward<float>(p); }
void center_loss_bwd_f64(const CenterParams& p) { center_backward<double>(p); }
void triplet_loss_fwd_f32(const TripletParams& p) { triplet_forward<float>(p); }
void triplet_loss_fwd_f64(const TripletParams& p) { triplet_forward<double>(p); }
void triplet_loss_bwd_f32(const TripletParams& p) { triplet_backward<float>(p); }
void triplet_loss_bwd_f64(const TripletParams& p) { triplet_backward<double>(p); }
void cross_entropy_fwd_f32(const CrossEntropyParams& p) { cross_entropy_forward<float>(p); }
void cross_entropy_fwd_f64(const CrossEntropyParams& p) { cross_entropy_forward<double>(p); }

}  // namespace FF_ISA
}  // namespace ff
