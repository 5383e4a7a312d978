// SPDX-License-Identifier: Apache-2.0
// Attention over tokens; all tensors dense, features innermost.
//   dot product  out[i] = sum_j p[i,j] · v[j],  p[i] = softmax_j(rate · q[i]·k[j]),  rate = factor · scale
//   additive     out = sum_t a[t] · x[t],  a = softmax_t(e),  e[t] = v·u[t] + v_bias,  u[t] = tanh(weight·[x[t]; h[t]]
//   + bias)
// Dot-product backward, with delta[i] = dout[i]·out[i] = sum_j p[i,j]·dp[i,j]:
//   dp[i,j] = dout[i]·v[j]   ds = p·(dp - delta)   dq = rate·ds k   dk = rate·dsᵀ q   dv = pᵀ dout
//   dscale = factor·sum ds·(q·k)
#pragma once
#include "core/types.h"

namespace ff {

struct DotProductParams {
  idx batch, queries, keys, depth, width;
  const void *q, *k, *v;  // [batch][queries][depth] [batch][keys][depth] [batch][keys][width]
  const void* scale;  // one element, or null: 1
  double factor;
  void* out;  // [batch][queries][width]; read by backward
  void* stats;  // [2][batch][queries]: largest score, 1 / sum exp(score - largest); null in inference
  const void* dout;
  void *dq, *dk, *dv, *dscale;  // null where not wanted
  int threads;

  FF_REQUIRED(batch, queries, keys, depth, width, q, k, v, scale, factor, out, stats, threads)
  FF_OPTIONAL(dout, dq, dk, dv, dscale)
};

struct AdditiveParams {
  idx batch, tokens, dim, hidden;
  const void *x, *h;  // [batch][tokens][dim]
  const void *weight, *bias, *v, *v_bias;  // [hidden][2·dim] [hidden] [hidden] [1]
  void *out, *u, *weights;  // [batch][dim] [batch][tokens][hidden] [batch][tokens]; u, weights null in inference
  const void* dout;
  void *dx, *dh;  // null where not wanted
  void *d_weight, *d_bias, *d_v, *d_v_bias;  // all null where not wanted
  int threads;

  FF_REQUIRED(batch, tokens, dim, hidden, x, h, weight, v, u, weights, threads)
  FF_OPTIONAL(bias, v_bias, out, dout, dx, dh, d_weight, d_bias, d_v, d_v_bias)
};

}  // namespace ff
