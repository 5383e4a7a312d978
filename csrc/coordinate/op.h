// SPDX-License-Identifier: Apache-2.0
// Coordinate attention and the pooling of rows and columns. Activations are NHWC, dense.
//   pool       row_mean[n,i,c] = mean_j x[n,i,j,c], row_max likewise; col_mean[n,j,c] = mean_i x[n,i,j,c], col_max
//   likewise attention  out = x · g[row] · g[column], g = sigmoid(v · act(norm(weight · pooled + bias)) + b), v and b
//   of rows or columns
// Positions are the n·h rows of all images, then their n·w columns. Of "cpsca" the two groups, [row mean; column max]
// and [row max; column mean], are added before the convolution, which is linear, and its bias counts twice.
#pragma once
#include "separable_conv/op.h"

namespace ff {

// Codes as fastfer.ops.coordinate.KINDS.
enum class Pooling : int { mean, max, both };

struct LinePoolParams {
  idx n, h, w, c;
  const void* x;
  void *row_mean, *row_max, *col_mean, *col_max;  // [n,h,c] twice, [n,w,c] twice
  const void *d_row_mean, *d_row_max, *d_col_mean, *d_col_max;  // backward
  void* dx;
  int threads;

  FF_REQUIRED(n, h, w, c, x, threads)
  FF_OPTIONAL(row_mean, row_max, col_mean, col_max, d_row_mean, d_row_max, d_col_mean, d_col_max, dx)
};

struct CoordinateParams {
  idx n, h, w, c, middle;
  Pooling kind;
  Act act;
  bool batch_stats;
  const void *x, *weight, *bias;  // [n,h,w,c] [middle,c] [middle]
  NormParams norm;
  const void *h_weight, *h_bias, *w_weight, *w_bias;  // [c,middle] [c] twice
  void* out;
  void *pooled, *at, *y, *gates;  // [positions][c], y [positions][middle]: training
  const void* dout;
  void *dx, *d_weight, *d_bias, *d_h_weight, *d_h_bias, *d_w_weight, *d_w_bias;  // null where not wanted
  int threads;

  FF_REQUIRED(n, h, w, c, middle, kind, act, batch_stats, x, weight, norm, h_weight, w_weight, threads)
  FF_OPTIONAL(bias, h_bias, w_bias, out, pooled, at, y, gates, dout, dx, d_weight, d_bias, d_h_weight, d_h_bias,
              d_w_weight, d_w_bias)
};

}  // namespace ff
