// SPDX-License-Identifier: Apache-2.0
// Depthwise and pointwise convolution and the fused separable block. Activations are NHWC, dense.
//   depthwise  y[n,i,j,c] = b[c] + sum_kl x[n, i·sh + k - top, j·sw + l - left, c] · w[c,k,l]
//   pointwise  y[m,o] = b[o] + sum_c x[m,c] · w[o,c]                                  m over all pixels
//   depthwise_norm  out = act(norm(depthwise(x)))
//   separable  out = act2(norm2(pointwise(act1(norm1(depthwise(x))))))
// Strides are in elements, pads in pixels; the bottom and right pad follow from the output size.
#pragma once
#include "norm/op.h"

namespace ff {

struct DepthwiseShape {
  idx n, h, w, c, oh, ow;
  int kh, kw, sh, sw, top, left;
};

struct DepthwiseParams {
  DepthwiseShape shape;
  const void *x, *w, *bias;  // [n,h,w,c] [c,kh,kw] [c] or null
  void* y;                   // [n,oh,ow,c]
  const void* dy;            // [n,oh,ow,c]
  void *dx, *dw, *db;        // null where not wanted
  int threads;
  NormParams norm;           // depthwise_norm only, from here on; y is then the convolution's output
  Act act;
  bool batch_stats;
  void* out;                 // act(norm(y)) [n,oh,ow,c]
  const void* dout;
  BeforeParams before;       // training; backward wants dx
};

struct PointwiseParams {
  idx rows, in, out;
  const void *x, *w, *bias;  // [rows,in] [out,in] [out] or null
  void* y;                   // [rows,out]
  const void* dy;
  void *dx, *dw, *db;        // null where not wanted
  int threads;
};

struct SeparableParams {
  DepthwiseShape shape;
  idx out_channels;
  const void *x, *dw, *dw_bias, *pw, *pw_bias;
  NormParams norm1, norm2;
  Act act1, act2;
  bool batch_stats;
  void *out, *y1, *y2;       // y2 null: nothing follows the pointwise convolution. Read by backward
  const void* dout;
  void *dx, *d_dw, *d_dw_bias, *d_pw, *d_pw_bias;  // null where not wanted
  int threads;
  BeforeParams before;       // training, from here on; backward wants dx
  DeferredParams deferred;   // out is the pointwise output, forward has no y2, backward takes it; norm2 has eps and stats
};

}  // namespace ff
