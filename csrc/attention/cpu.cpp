// SPDX-License-Identifier: Apache-2.0
// Dot-product and additive attention, forward and backward. Vectorised over queries or features, parallel over
// sequences and blocks of queries, keys or tokens. Work is cut into tasks by shape alone, and partial sums are merged
// in task order, so that results do not depend on the number of threads.
#include "attention/additive.h"
#include "attention/dot_backward.h"
#include "attention/dot_forward.h"

namespace ff {
namespace FF_ISA {

void dot_product_attention_fwd_f32(const DotProductParams& p) { dot_product_forward<float>(p); }
void dot_product_attention_fwd_f64(const DotProductParams& p) { dot_product_forward<double>(p); }
void dot_product_attention_bwd_f32(const DotProductParams& p) { dot_product_backward<float>(p); }
void dot_product_attention_bwd_f64(const DotProductParams& p) { dot_product_backward<double>(p); }
void additive_attention_fwd_f32(const AdditiveParams& p) { additive_forward<float>(p); }
void additive_attention_fwd_f64(const AdditiveParams& p) { additive_forward<double>(p); }
void additive_attention_bwd_f32(const AdditiveParams& p) { additive_backward<float>(p); }
void additive_attention_bwd_f64(const AdditiveParams& p) { additive_backward<double>(p); }

}  // namespace FF_ISA
}  // namespace ff
