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

  FF_REQUIRED(n, h, w, c, oh, ow, kh, kw, sh, sw, top, left)
  FF_OPTIONAL()
};

struct DepthwiseParams {
  DepthwiseShape shape;
  const void *x, *weight, *bias;    // [n,h,w,c] [c,kh,kw] [c] or null
  void* y;                          // [n,oh,ow,c]
  const void* dy;                   // [n,oh,ow,c]
  void *dx, *d_weight, *d_bias;     // null where not wanted
  int threads;
  NormParams norm;                  // depthwise_norm only, from here on; y is then the convolution's output
  Act act;
  bool batch_stats;
  void* out;                        // act(norm(y)) [n,oh,ow,c]
  const void* dout;
  LinkedInputParams linked_input;   // training; backward wants dx

  FF_REQUIRED(shape, x, weight, threads)
  FF_OPTIONAL(bias, y, dy, dx, d_weight, d_bias, norm, act, batch_stats, out, dout, linked_input)
};

struct PointwiseParams {
  idx rows, in_channels, out_channels;
  const void *x, *weight, *bias;    // [rows,in_channels] [out_channels,in_channels] [out_channels] or null
  void* y;                          // [rows,out_channels]
  const void* dy;
  void *dx, *d_weight, *d_bias;     // null where not wanted
  int threads;

  FF_REQUIRED(rows, in_channels, out_channels, x, weight, threads)
  FF_OPTIONAL(bias, y, dy, dx, d_weight, d_bias)
};

struct SeparableParams {
  DepthwiseShape shape;
  idx out_channels;
  const void *x, *dw_weight, *dw_bias, *pw_weight,
      *pw_bias;  // dw: of the depthwise convolution, pw: of the pointwise one
  NormParams norm1, norm2;
  Act act1, act2;
  bool batch_stats;
  void *out, *y1, *y2;                // y2 null: nothing follows the pointwise convolution. Read by backward
  const void* dout;
  void *dx, *d_dw_weight, *d_dw_bias, *d_pw_weight, *d_pw_bias;  // null where not wanted
  int threads;
  LinkedInputParams linked_input;     // training, from here on; backward wants dx
  // out is the pointwise output; forward has no y2, and backward takes it; of norm2 there are eps and stats.
  LinkedOutputParams linked_output;

  FF_REQUIRED(shape, out_channels, x, dw_weight, pw_weight, act1, act2, batch_stats, threads)
  FF_OPTIONAL(dw_bias, pw_bias, norm1, norm2, out, y1, y2, dout, dx, d_dw_weight, d_dw_bias, d_pw_weight, d_pw_bias,
              linked_input, linked_output)
};

}  // namespace ff
