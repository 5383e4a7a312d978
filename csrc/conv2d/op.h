// SPDX-License-Identifier: Apache-2.0
// Dense convolution with normalisation and activation, out = act(norm(y)). Activations are NHWC, dense.
//   y[n,i,j,o] = b[o] + sum_klc x[n, i·sh + k - top, j·sw + l - left, c] · w[o,c,k,l]
// and in training, where asked for, out = maxpool(act(norm(y))).
// Strides and pads are in pixels; the bottom and right pad follow from the output size.
#pragma once
#include "norm/op.h"

namespace ff {

struct ConvShape {
  idx n, h, w, c, o, oh, ow;
  int kh, kw, sh, sw, top, left;

  FF_REQUIRED(n, h, w, c, o, oh, ow, kh, kw, sh, sw, top, left)
  FF_OPTIONAL()
};

// Windows of a max pooling after act(norm(y)), as MaxPoolParams; kh 0: none.
struct PoolShape {
  idx oh, ow;
  int kh, kw, sh, sw, top, left;

  FF_REQUIRED(oh, ow, kh, kw, sh, sw, top, left)
  FF_OPTIONAL()
};

struct Conv2dParams {
  ConvShape shape;
  const void *x, *weight, *bias;      // [n,h,w,c] [o,c,kh,kw] [o] or null
  NormParams norm;
  Act act;
  bool batch_stats;
  void *out, *y;                      // [n,oh,ow,o]; y null: nothing follows the convolution. Read by backward
  const void* dout;
  void *dx, *d_weight, *d_bias;       // null where not wanted
  int threads;
  PoolShape pool;                     // with a pool out and dout are [n,pool.oh,pool.ow,o], as are
  void *best, *positions;  // y where the maximum is, and its place in the window (uint8); read by backward
  LinkedOutputParams linked_output;  // out is the convolution's output: forward has no y, backward takes it; no pool

  FF_REQUIRED(shape, x, weight, act, batch_stats, y, threads)
  FF_OPTIONAL(bias, norm, out, dout, dx, d_weight, d_bias, pool, best, positions, linked_output)
};

}  // namespace ff
