// SPDX-License-Identifier: Apache-2.0
// Dense convolution as products of gathered windows with the weights (implicit im2col, a block at a time), or, in
// training with float32 and where it pays, of transformed tiles with transformed weights (Winograd). Work is cut by
// shape alone and partial sums are merged in order, so that results do not depend on the number of threads.
#include "conv2d/backward.h"
#include "conv2d/forward.h"

namespace ff {
namespace FF_ISA {

void conv2d_fwd_f32(const Conv2dParams& p) { conv_inference<float>(p); }
void conv2d_fwd_f64(const Conv2dParams& p) { conv_inference<double>(p); }
void conv2d_train_f32(const Conv2dParams& p) { conv_training<float>(p); }
void conv2d_train_f64(const Conv2dParams& p) { conv_training<double>(p); }
void conv2d_bwd_f32(const Conv2dParams& p) { conv_backward<float>(p); }
void conv2d_bwd_f64(const Conv2dParams& p) { conv_backward<double>(p); }

}  // namespace FF_ISA
}  // namespace ff
