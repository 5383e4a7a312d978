// SPDX-License-Identifier: Apache-2.0
// Coordinate attention and its pooling: vectorised over channels, parallel over images and blocks of channels. Tasks
// are cut by shape alone, and partial sums are merged in task order, so that results do not depend on the number of
// threads.
#include "coordinate/backward.h"
#include "coordinate/forward.h"

namespace ff {
namespace FF_ISA {

void cpsca_pool_fwd_f32(const LinePoolParams& p) { pool_forward<float>(p); }
void cpsca_pool_fwd_f64(const LinePoolParams& p) { pool_forward<double>(p); }
void cpsca_pool_bwd_f32(const LinePoolParams& p) { pool_backward<float>(p); }
void cpsca_pool_bwd_f64(const LinePoolParams& p) { pool_backward<double>(p); }
void coordinate_attention_fwd_f32(const CoordinateParams& p) { attention_inference<float>(p); }
void coordinate_attention_fwd_f64(const CoordinateParams& p) { attention_inference<double>(p); }
void coordinate_attention_train_f32(const CoordinateParams& p) { attention_training<float>(p); }
void coordinate_attention_train_f64(const CoordinateParams& p) { attention_training<double>(p); }
void coordinate_attention_bwd_f32(const CoordinateParams& p) { attention_backward<float>(p); }
void coordinate_attention_bwd_f64(const CoordinateParams& p) { attention_backward<double>(p); }

}  // namespace FF_ISA
}  // namespace ff
