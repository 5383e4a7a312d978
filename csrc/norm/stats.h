// SPDX-License-Identifier: Apache-2.0
// Per-channel statistics: merged from blocks in a fixed order and in float64 (Chan, Golub, LeVeque 1979), and the
// per-channel vectors that forward and backward apply.
#pragma once
#include "primitives/local.h"

namespace ff {
namespace FF_ISA {
namespace {

// stats [3][channels] = mean, 1/sqrt(m2/n + eps), m2/(n - 1), from block moments mean, m2 [blocks][stride];
// rows_of(block) is the number of values a channel in it.
template <class T, class RowsOf>
FF_INLINE void merge_moments(const T* mean, const T* m2, idx blocks, idx stride, idx channels, double eps,
                             const RowsOf& rows_of, T* stats) {
  constexpr idx kGroup = 64;
  for (idx first = 0; first < channels; first += kGroup) {
    const idx group = min_idx(kGroup, channels - first);
    double merged[kGroup] = {}, deviation[kGroup] = {}, total = 0;
    for (idx b = 0; b < blocks; ++b) {
      const double rows = static_cast<double>(rows_of(b));
      const double before = total;
      total += rows;
      const double share = rows / total;
      const T *block_mean = mean + b * stride + first, *block_m2 = m2 + b * stride + first;
      for (idx c = 0; c < group; ++c) {
        const double delta = static_cast<double>(block_mean[c]) - merged[c];
        merged[c] += delta * share;
        deviation[c] += static_cast<double>(block_m2[c]) + delta * delta * before * share;
      }
    }
    const double count = total > 0 ? total : 1;
    for (idx c = 0; c < group; ++c) {
      stats[first + c] = static_cast<T>(merged[c]);
      stats[channels + first + c] = static_cast<T>(1 / __builtin_sqrt(deviation[c] / count + eps));
      stats[2 * channels + first + c] = static_cast<T>(count > 1 ? deviation[c] / (count - 1) : deviation[c]);
    }
  }
}

// stats of constants: running mean and variance.
template <class T>
FF_INLINE void running_stats(const T* mean, const T* var, idx channels, double eps, T* stats) {
  for (idx c = 0; c < channels; ++c) {
    stats[c] = mean[c];
    stats[channels + c] = static_cast<T>(1 / __builtin_sqrt(static_cast<double>(var[c]) + eps));
    stats[2 * channels + c] = var[c];
  }
}

// scale = weight·invstd, shift = bias - mean·scale, mean copied; zeros up to a whole vector.
template <class T>
FF_INLINE void norm_vectors(const T* weight, const T* bias, const T* stats, idx channels, T* scale, T* shift, T* mean) {
  for (idx c = 0; c < channels; ++c) {
    const double slope = static_cast<double>(weight[c]) * stats[channels + c];
    scale[c] = static_cast<T>(slope);
    shift[c] = static_cast<T>(static_cast<double>(bias[c]) - slope * stats[c]);
    mean[c] = stats[c];
  }
  for (idx c = channels, end = round_up_lanes<T>(channels); c < end; ++c) scale[c] = shift[c] = mean[c] = T(0);
}

// Adds a block's sums to running ones in float64.
template <class T>
FF_INLINE void add_to(double* total, const T* part, idx n) {
  for (idx i = 0; i < n; ++i) total[i] += static_cast<double>(part[i]);
}

// Adds parts [parts][stride] in order into the first one.
template <class S>
FF_INLINE void fold_parts(S* values, idx parts, idx stride, idx n) {
  for (idx p = 1; p < parts; ++p) {
    const S* part = values + p * stride;
    for (idx i = 0; i < n; ++i) values[i] += part[i];
  }
}

// Gradients of weight and bias and the affine form of the input's gradient (see NormGrad):
//   dy = w·i·(g - s/n - (y - mean)·i²·sx/n),  i = invstd, s = sum g, sx = sum g·(y - mean);  s = sx = 0 with running
// statistics. s and sx [parts][stride] are folded here; d_weight and d_bias may be null.
template <class T>
FF_INLINE void norm_backward_vectors(const T* weight, const T* stats, idx channels, double* s, double* sx, idx parts,
                                     idx stride, double count, bool batch_stats, T* slope, T* curve, T* offset,
                                     T* d_weight, T* d_bias) {
  fold_parts(s, parts, stride, channels), fold_parts(sx, parts, stride, channels);
  for (idx c = 0; c < channels; ++c) {
    const double sum = s[c], sum_x = sx[c];
    const double invstd = stats[channels + c], mean = stats[c], factor = weight[c] * invstd;
    const double bend = batch_stats ? factor * invstd * invstd * sum_x / count : 0;
    slope[c] = static_cast<T>(factor);
    curve[c] = static_cast<T>(-bend);
    offset[c] = static_cast<T>(batch_stats ? bend * mean - factor * sum / count : 0);
    if (d_weight) d_weight[c] = static_cast<T>(sum_x * invstd);
    if (d_bias) d_bias[c] = static_cast<T>(sum);
  }
  for (idx c = channels, end = round_up_lanes<T>(channels); c < end; ++c) slope[c] = curve[c] = offset[c] = T(0);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
