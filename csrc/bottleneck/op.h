// SPDX-License-Identifier: Apache-2.0
// The inverted bottleneck (Sandler et al. 2018). Activations are NHWC, dense.
//   z   = norm1(pointwise(x))                expansion, never in memory
//   y1  = depthwise(act(z))
//   y2  = pointwise(act(norm2(y1)))          projection
//   out = norm3(y2) [+ x], or without a projection act(norm2(y1))
// No convolution has a bias. With the batch's statistics those of the expansion follow from x: with its mean m and
// covariance C, w·x has mean w·m and variance w·C·w.
#pragma once
#include "separable_conv/op.h"

namespace ff {

struct BottleneckParams {
  DepthwiseShape shape;                 // of the depthwise convolution, c the hidden channels
  idx in_channels, out_channels;        // of x and of the projection; out_channels 0: there is none
  const void *x, *expand, *dw_weight, *project;     // [n,h,w,in] [c,in] [c,kh,kw] [out,c] or null
  NormParams norm1, norm2, norm3;
  Act act;
  bool batch_stats, residual;
  void *result, *y1, *y2;               // [n,oh,ow,out or c] [n,oh,ow,c] [n,oh,ow,out]; y2 null without a projection
  void* covariance;                     // [c + 1][in] with batch_stats: of w·x with x; in the last row x's mean
  const void* dout;
  void *dx, *d_expand, *d_dw_weight, *d_project;    // null where not wanted
  int threads;

  FF_REQUIRED(shape, in_channels, out_channels, x, expand, dw_weight, project, norm1, norm2, norm3, act, batch_stats,
              residual, y1, y2, covariance, threads)
  FF_OPTIONAL(result, dout, dx, d_expand, d_dw_weight, d_project)
};

}  // namespace ff
