// SPDX-License-Identifier: Apache-2.0
// Cross-entropy and its gradient in one pass over the logits, row by row.
#pragma once
#include "loss/center.h"
#include "simd/math.h"

namespace ff {
namespace FF_ISA {
namespace {

// softmax(logits) into `weights`; returns log sum exp(logits).
template <class T>
FF_INLINE double softmax_row(const T* logits, idx classes, T* weights) {
  T most = logits[0];
  for (idx k = 1; k < classes; ++k) most = logits[k] > most ? logits[k] : most;
  vec<T> sums = {};
  for_lanes<T>(classes, [&](idx k, idx n) {
    store_n<T>(weights + k, exp<T>(load_n<T>(logits + k, n) - splat<T>(most)), n);
    sums = sums + load_n<T>(weights + k, n);
  });
  const T sum = sum_lanes<T>(sums);
  const vec<T> inverse = splat<T>(T(1) / sum);
  for_lanes<T>(classes, [&](idx k, idx n) { store_n<T>(weights + k, load_n<T>(weights + k, n) * inverse, n); });
  return static_cast<double>(most) + __builtin_log(static_cast<double>(sum));
}

template <class T>
FF_INLINE double weight_of(const CrossEntropyParams& p, idx k) {
  return p.weight ? static_cast<double>(static_cast<const T*>(p.weight)[k]) : 1.0;
}

// What the log-probability of class k is multiplied by in row n.
template <class T>
FF_INLINE double factor_of(const CrossEntropyParams& p, idx n, idx k) {
  const double target = p.labels ? static_cast<double>(p.labels[n] == k)
                                 : static_cast<double>(static_cast<const T*>(p.targets)[n * p.classes + k]);
  return weight_of<T>(p, k) * (target * (1 - p.smoothing) + p.smoothing / static_cast<double>(p.classes));
}

// Loss of row n; `weights`, its softmax, becomes the gradient of the logits.
template <class T>
FF_INLINE double entropy_row(const CrossEntropyParams& p, idx n, double log_sum, double inverse_total, T* weights) {
  const T* logits = static_cast<const T*>(p.logits) + n * p.classes;
  const bool hard = p.labels && p.smoothing == 0;  // 0 · inf: classes without a factor do not take part
  double loss = 0, factors = 0;
  for (idx k = hard ? p.labels[n] : 0; k < (hard ? p.labels[n] + 1 : p.classes); ++k) {
    const double factor = factor_of<T>(p, n, k);
    loss -= factor * (static_cast<double>(logits[k]) - log_sum);
    factors += factor;
  }
  if (!p.d_logits) return loss;
  const vec<T> scale = splat<T>(static_cast<T>(factors * inverse_total));
  if (hard) {
    for_lanes<T>(p.classes,
                 [&](idx k, idx count) { store_n<T>(weights + k, load_n<T>(weights + k, count) * scale, count); });
    weights[p.labels[n]] -= static_cast<T>(factors * inverse_total);
    return loss;
  }
  for (idx k = 0; k < p.classes; ++k)
    weights[k] = static_cast<T>((static_cast<double>(weights[k]) * factors - factor_of<T>(p, n, k)) * inverse_total);
  return loss;
}

template <class T>
FF_INLINE void cross_entropy_forward(const CrossEntropyParams& p) {
  const T* logits = static_cast<const T*>(p.logits);
  const idx block = rows_per_task(8 * p.classes), tasks = ceil_div(p.count, block);
  double total = p.labels && p.weight ? 0 : static_cast<double>(p.count);
  if (p.labels && p.weight)
    for (idx n = 0; n < p.count; ++n) total += weight_of<T>(p, p.labels[n]);
  double* parts = nullptr;
  Arena a(Scratch::shared);
  parts = a.take<double>(tasks);
  for_tasks(tasks, p.threads, [&](idx task) {
    T* row = nullptr;
    Arena a(Scratch::task);
    row = a.take<T>(p.classes);
    double part = 0;
    for (idx n = task * block; n < min_idx(p.count, (task + 1) * block); ++n) {
      T* weights = p.d_logits ? static_cast<T*>(p.d_logits) + n * p.classes : row;
      const double log_sum = softmax_row<T>(logits + n * p.classes, p.classes, weights);
      part += entropy_row<T>(p, n, log_sum, 1 / total, weights);
    }
    parts[task] = part;
  });
  double loss = 0;
  for (idx task = 0; task < tasks; ++task) loss += parts[task];
  *static_cast<T*>(p.loss) = static_cast<T>(loss / total);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
