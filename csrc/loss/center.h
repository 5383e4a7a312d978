// SPDX-License-Identifier: Apache-2.0
// Centre loss: rows in forward, blocks of columns in backward, where samples of a class add to the same row in order.
#pragma once
#include "loss/op.h"
#include "simd/arena.h"
#include "simd/lanes.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr idx kGrain = 1 << 17;  // elements of a task: about what waking a thread costs
constexpr idx kColumns = 64;     // of a block in backward

// Tasks of about kGrain elements for `rows` rows.
FF_INLINE idx rows_per_task(idx columns) { return max_idx(1, kGrain / max_idx(1, columns)); }

// Runs body(first, count) for blocks of columns of [rows][columns].
template <class Body>
FF_INLINE void for_columns(idx rows, idx columns, int threads, const Body& body) {
  const idx width = max_idx(kColumns, kGrain / max_idx(1, rows) / kColumns * kColumns);
  for_tasks(ceil_div(columns, width), threads,
            [&](idx task) { body(task * width, min_idx(width, columns - task * width)); });
}

template <class T>
FF_INLINE void center_forward(const CenterParams& p) {
  const T *features = static_cast<const T*>(p.features), *centers = static_cast<const T*>(p.centers);
  const idx block = rows_per_task(p.dim), tasks = ceil_div(p.count, block);
  double* parts = nullptr;
  Arena a(Scratch::shared);
  parts = a.take<double>(tasks);
  for_tasks(tasks, p.threads, [&](idx task) {
    double total = 0;
    for (idx n = task * block; n < min_idx(p.count, (task + 1) * block); ++n) {
      const T *x = features + n * p.dim, *center = centers + p.labels[n] * p.dim;
      vec<T> sum = {};
      for_lanes<T>(p.dim, [&](idx c, idx lanes_left) {
        const vec<T> diff = load_n<T>(x + c, lanes_left) - load_n<T>(center + c, lanes_left);
        sum = fma(diff, diff, sum);
      });
      total += static_cast<double>(sum_lanes<T>(sum));
    }
    parts[task] = total;
  });
  double total = 0;
  for (idx task = 0; task < tasks; ++task) total += parts[task];
  *static_cast<T*>(p.loss) = static_cast<T>(0.5 * total);
}

template <class T>
FF_INLINE void center_backward(const CenterParams& p) {
  const T *features = static_cast<const T*>(p.features), *centers = static_cast<const T*>(p.centers);
  T *d_features = static_cast<T*>(p.d_features), *d_centers = static_cast<T*>(p.d_centers);
  const vec<T> dloss = splat<T>(*static_cast<const T*>(p.dloss));
  for_columns(p.count, p.dim, p.threads, [&](idx first, idx columns) {
    for (idx k = 0; d_centers && k < p.classes; ++k) fill_zero(d_centers + k * p.dim + first, columns);
    for (idx n = 0; n < p.count; ++n) {
      const idx row = n * p.dim + first, center = p.labels[n] * p.dim + first;
      for_lanes<T>(columns, [&](idx c, idx lanes_left) {
        const vec<T> diff = load_n<T>(features + row + c, lanes_left) - load_n<T>(centers + center + c, lanes_left);
        const vec<T> grad = diff * dloss;
        if (d_features) store_n<T>(d_features + row + c, grad, lanes_left);
        if (d_centers)
          store_n<T>(d_centers + center + c, load_n<T>(d_centers + center + c, lanes_left) - grad, lanes_left);
      });
    }
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
