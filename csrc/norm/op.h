// SPDX-License-Identifier: Apache-2.0
// Batch normalisation and activation of rows of channels: NHWC activations, one row a pixel.
//   forward   out = act((x - mean)·invstd·weight + bias), invstd = 1/sqrt(var + eps)
//   backward  g = dout·act', dx = weight·invstd·(g - sum(g)/n - (x - mean)·invstd²·sum(g·(x - mean))/n) over n rows;
//             the sums drop out where mean and var are constants
#pragma once
#include "core/types.h"

namespace ff {

// A normalisation's tensors, [channels] each; weight null: there is none.
struct NormParams {
  const void *weight, *bias, *mean, *var;
  double eps;
  void* stats;  // [3][channels]: mean, 1/sqrt(var + eps), unbiased variance; written by training, read by backward
  void *d_weight, *d_bias;  // backward; null where not wanted

  FF_REQUIRED()
  FF_OPTIONAL(weight, bias, mean, var, eps, stats, d_weight, d_bias)
};

// Where an op takes over the normalisation of the op before it: x stands for act((x - mean)·invstd·weight + bias), and
// the gradients are those of x, weight, bias and, as of a tensor of their own, the statistics. weight null: x is
// itself.
struct LinkedInputParams {
  const void *weight, *bias, *stats;  // [channels] [channels] [3][channels]
  Act act;
  void *d_weight, *d_bias, *d_stats;  // backward; null where not wanted

  FF_REQUIRED(weight, bias, stats, act)
  FF_OPTIONAL(d_weight, d_bias, d_stats)
};

// Where an op leaves its last normalisation to the op after it: it ends with y and its statistics.
struct LinkedOutputParams {
  bool on;
  const void* d_stats;  // [3][channels], gradients of the statistics; backward only

  FF_REQUIRED(on)
  FF_OPTIONAL(d_stats)
};

struct BatchNormParams {
  idx rows, channels;
  const void* x;  // [rows][channels]
  NormParams norm;
  Act act;
  bool batch_stats;  // statistics of these rows; false: norm.mean and norm.var
  const void* dout;  // backward only
  void* out;  // out, or in backward dx; null where not wanted
  int threads;

  FF_REQUIRED(rows, channels, x, norm, act, batch_stats, out, threads)
  FF_OPTIONAL(dout)
};

// running += momentum · (batch - running) of mean and variance.
struct RunningParams {
  idx channels;
  const void* stats;  // as NormParams::stats
  void *mean, *var;  // [channels]
  double momentum;

  FF_REQUIRED(channels, stats, mean, var, momentum)
  FF_OPTIONAL()
};

}  // namespace ff
