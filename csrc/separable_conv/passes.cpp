// SPDX-License-Identifier: Apache-2.0
// Depthwise and pointwise convolution, forward and backward, and the fused block in inference. Vectorised over
// channels, parallel over bands of rows. Work is cut into tasks by shape alone, and partial sums are merged in task
// order, so that results do not depend on the number of threads.
#include "separable_conv/depthwise_norm_pass.h"
#include "separable_conv/pointwise_pass.h"
#include "separable_conv/separable_pass.h"

namespace ff {
namespace FF_ISA {

void depthwise_conv2d_fwd_f32(const DepthwiseParams& p) { depthwise_forward<float>(p); }
void depthwise_conv2d_fwd_f64(const DepthwiseParams& p) { depthwise_forward<double>(p); }
void depthwise_conv2d_bwd_f32(const DepthwiseParams& p) { depthwise_backward<float>(p); }
void depthwise_conv2d_bwd_f64(const DepthwiseParams& p) { depthwise_backward<double>(p); }
void depthwise_norm_fwd_f32(const DepthwiseParams& p) { depthwise_norm_inference<float>(p); }
void depthwise_norm_fwd_f64(const DepthwiseParams& p) { depthwise_norm_inference<double>(p); }
void depthwise_norm_train_f32(const DepthwiseParams& p) { depthwise_norm_training<float>(p); }
void depthwise_norm_train_f64(const DepthwiseParams& p) { depthwise_norm_training<double>(p); }
void depthwise_norm_bwd_f32(const DepthwiseParams& p) { depthwise_norm_backward<float>(p); }
void depthwise_norm_bwd_f64(const DepthwiseParams& p) { depthwise_norm_backward<double>(p); }
void pointwise_conv2d_fwd_f32(const PointwiseParams& p) { pointwise_forward<float>(p); }
void pointwise_conv2d_fwd_f64(const PointwiseParams& p) { pointwise_forward<double>(p); }
void pointwise_conv2d_bwd_f32(const PointwiseParams& p) { pointwise_backward<float>(p); }
void pointwise_conv2d_bwd_f64(const PointwiseParams& p) { pointwise_backward<double>(p); }
void separable_conv2d_fwd_f32(const SeparableParams& p) { separable_inference<float>(p); }
void separable_conv2d_fwd_f64(const SeparableParams& p) { separable_inference<double>(p); }
void separable_conv2d_train_f32(const SeparableParams& p) { separable_training<float>(p); }
void separable_conv2d_train_f64(const SeparableParams& p) { separable_training<double>(p); }
void separable_conv2d_bwd_f32(const SeparableParams& p) { separable_backward<float>(p); }
void separable_conv2d_bwd_f64(const SeparableParams& p) { separable_backward<double>(p); }

}  // namespace FF_ISA
}  // namespace ff
