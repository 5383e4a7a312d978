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
  void* stats;               // [3][channels]: mean, 1/sqrt(var + eps), unbiased variance; written by training, read by backward
  void *d_weight, *d_bias;   // backward; null where not wanted
};

// Where an op takes over the normalisation of the op before it: x stands for act((x - mean)·invstd·weight + bias), and the
// gradients are those of x, weight, bias and, as of a tensor of their own, the statistics. weight null: x is itself.
struct BeforeParams {
  const void *weight, *bias, *stats;     // [channels] [channels] [3][channels]
  Act act;
  void *d_weight, *d_bias, *d_stats;     // backward; null where not wanted
};

// Where an op leaves its last normalisation to the op behind it: it ends with y and its statistics.
struct DeferredParams {
  bool on;
  const void* d_stats;                   // [3][channels], gradients of the statistics; backward only
};

struct BatchNormParams {
  idx rows, channels;
  const void* x;     // [rows][channels]
  NormParams norm;
  Act act;
  bool batch_stats;  // statistics of these rows; false: norm.mean and norm.var
  const void* dout;  // backward only
  void* out;         // out, or in backward dx; null where not wanted
  int threads;
};

}  // namespace ff
