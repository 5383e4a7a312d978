// SPDX-License-Identifier: Apache-2.0
// Pooling: windows and whole images. Every result is computed by one task, so none depends on the number of threads.
#include "pool/op.h"

#include "pool/global_pool.h"
#include "pool/max_pool.h"

namespace ff {
namespace FF_ISA {

void max_pool2d_fwd_f32(const MaxPoolParams& p) { max_pool_forward<float, false>(p); }
void max_pool2d_fwd_f64(const MaxPoolParams& p) { max_pool_forward<double, false>(p); }
void max_pool2d_train_f32(const MaxPoolParams& p) { max_pool_forward<float, true>(p); }
void max_pool2d_train_f64(const MaxPoolParams& p) { max_pool_forward<double, true>(p); }
void max_pool2d_bwd_f32(const MaxPoolParams& p) { max_pool_backward<float>(p); }
void max_pool2d_bwd_f64(const MaxPoolParams& p) { max_pool_backward<double>(p); }
void global_avg_pool_fwd_f32(const GlobalPoolParams& p) { global_pool_forward<float>(p); }
void global_avg_pool_fwd_f64(const GlobalPoolParams& p) { global_pool_forward<double>(p); }
void global_avg_pool_bwd_f32(const GlobalPoolParams& p) { global_pool_backward<float>(p); }
void global_avg_pool_bwd_f64(const GlobalPoolParams& p) { global_pool_backward<double>(p); }
void global_max_pool_fwd_f32(const GlobalPoolParams& p) { global_pool_forward<float>(p); }
void global_max_pool_fwd_f64(const GlobalPoolParams& p) { global_pool_forward<double>(p); }
void global_max_pool_bwd_f32(const GlobalPoolParams& p) { global_pool_backward<float>(p); }
void global_max_pool_bwd_f64(const GlobalPoolParams& p) { global_pool_backward<double>(p); }
void global_avg_max_pool_fwd_f32(const GlobalPoolParams& p) { global_pool_forward<float>(p); }
void global_avg_max_pool_fwd_f64(const GlobalPoolParams& p) { global_pool_forward<double>(p); }
void global_avg_max_pool_bwd_f32(const GlobalPoolParams& p) { global_pool_backward<float>(p); }
void global_avg_max_pool_bwd_f64(const GlobalPoolParams& p) { global_pool_backward<double>(p); }

}  // namespace FF_ISA
}  // namespace ff
