// SPDX-License-Identifier: Apache-2.0
// Gates on channels and on pixels, one or both: out = x · (channel gate[n,c] + pixel gate[n,i,j]). NHWC, dense.
//   channel  gate_act(w2 · act(w1 · m + b1) + b2), m[n,c] = mean_ij x; without w2 gate_act(convolution of m over c by
//   w1) pixel    sigmoid(sw[0] · max_c x + sw[1] · mean_c x + sb), or, linear, sigmoid(sum_c sw[c] · x[c] + sb) pool
//   out is the 2×2 maximum, stride 2, of the product
#pragma once
#include "norm/op.h"

namespace ff {

struct GateParams {
  idx n, h, w, c, hidden;  // hidden units, or taps of the convolution
  Act act, gate_act;
  bool linear, pool;
  const void* x;
  const void *w1, *b1, *w2,
      *b2;  // [hidden,c] [hidden] [c,hidden] [c]; w1 [taps], the others null; all null: no channel gate
  const void *sw, *sb;  // [2 or c] [1]; null: no pixel gate
  void* out;
  void *means, *pixels;  // [n,c]; [n,3,h·w]: maximum, mean, its channel, or [n,1,h·w]: logit. Training
  const void* dout;
  void *dx, *d_w1, *d_b1, *d_w2, *d_b2, *d_sw, *d_sb;  // null where not wanted
  int threads;
  LinkedInputParams linked_input;  // training; backward wants dx

  FF_REQUIRED(n, h, w, c, hidden, act, gate_act, linear, pool, x, threads)
  FF_OPTIONAL(w1, b1, w2, b2, sw, sb, out, means, pixels, dout, dx, d_w1, d_b1, d_w2, d_b2, d_sw, d_sb, linked_input)
};

}  // namespace ff
