// SPDX-License-Identifier: Apache-2.0
// Convolutional block attention (CBAM, Woo et al. 2018). Activations are NHWC, dense; an image has h·w pixels of c
// channels.
//   channel gate  g[c] = sigmoid(mlp(avg)[c] + mlp(max)[c]), avg and max over the pixels, mlp(v) = w2·relu(w1·v + b1) +
//   b2 spatial gate  s[p] = sigmoid(norm(y)[p]), y = conv k×k ([max_c u; mean_c u]), zero padding k/2, u = x·g out =
//   u·s
// Without w1 there is no channel gate (g = 1), without weight no spatial one (s = 1). The norm is that of one channel.
// Of equal values the first is the maximum. NaN is the largest; of several the last pixel, the first channel, as in
// torch.
#pragma once
#include "core/types.h"

namespace ff {

struct CbamParams {
  idx n, h, w, c, hidden;
  int k;
  const void* x;  // [n,h,w,c]
  const void *w1, *b1, *w2, *b2;  // [hidden,c] [hidden] [c,hidden] [c]; w1 null: no channel gate
  const void* weight;  // [2,k,k]: of the maximum, of the mean; null: no spatial gate
  const void *norm_weight, *norm_bias, *norm_mean, *norm_var;  // [1]
  double eps;
  bool batch_stats;
  void* out;  // [n,h,w,c]
  // Written by training, read by backward; null in inference.
  void* pooled;  // [3,n,c]: avg, max, g
  int32_t* positions;  // [n,c]: pixel of max
  void* planes;  // [3,n,h,w]: max_c u, mean_c u, y
  int32_t* channels;  // [n,h,w]: channel of max_c u
  void* stats;  // [3]: mean of y, 1/sqrt(var + eps), unbiased variance
  const void* dout;
  void* dx;  // null where not wanted, as the rest
  void *d_w1, *d_b1, *d_w2, *d_b2;  // all or none
  void *d_weight, *d_norm_weight, *d_norm_bias;
  int threads;

  FF_REQUIRED(n, h, w, c, x, batch_stats, threads)
  FF_OPTIONAL(hidden, k, w1, b1, w2, b2, weight, norm_weight, norm_bias, norm_mean, norm_var, eps, out, pooled,
              positions, planes, channels, stats, dout, dx, d_w1, d_b1, d_w2, d_b2, d_weight, d_norm_weight,
              d_norm_bias)
};

}  // namespace ff
