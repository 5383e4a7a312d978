// SPDX-License-Identifier: Apache-2.0
// The inverted bottleneck. Vectorised over channels, parallel over images, parts of images and slices of channels.
// Partial sums are cut by shape alone and merged in order, so that results do not depend on the number of threads.
#include "bottleneck/backward.h"
#include "bottleneck/forward.h"

namespace ff {
namespace FF_ISA {

void inverted_bottleneck_fwd_f32(const BottleneckParams& p) { bottleneck_inference<float>(p); }
void inverted_bottleneck_fwd_f64(const BottleneckParams& p) { bottleneck_inference<double>(p); }
void inverted_bottleneck_train_f32(const BottleneckParams& p) { bottleneck_training<float>(p); }
void inverted_bottleneck_train_f64(const BottleneckParams& p) { bottleneck_training<double>(p); }
void inverted_bottleneck_bwd_f32(const BottleneckParams& p) { bottleneck_backward<float>(p); }
void inverted_bottleneck_bwd_f64(const BottleneckParams& p) { bottleneck_backward<double>(p); }

}  // namespace FF_ISA
}  // namespace ff
