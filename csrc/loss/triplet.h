// SPDX-License-Identifier: Apache-2.0
// Batch-hard triplet loss. Distances are sums of squared differences, not |a|² - 2ab + |b|², which cancels for near
// rows; four anchors share each row that is read. Backward adds to blocks of columns, anchor by anchor in order.
#pragma once
#include "loss/center.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr int kAnchors = 4;

// The hardest samples of an anchor so far, by squared distance; a NaN distance is the hardest, and stays.
struct Hardest {
  double far, near;
  idx positive, negative;
};

FF_INLINE void consider(Hardest& hardest, double square, idx sample, bool same) {
  const bool nan = !(square == square);
  if (same && (hardest.positive < 0 || square > hardest.far || nan)) hardest.far = square, hardest.positive = sample;
  if (!same && (hardest.negative < 0 || square < hardest.near || nan)) hardest.near = square, hardest.negative = sample;
}

// Squared distances of row x to `anchors` rows from `first` on, which may be fewer than kAnchors.
template <class T>
FF_INLINE void square_distances(const T* first, idx anchors, const T* x, idx dim, T* squares) {
  const T* rows[kAnchors];
  for (int i = 0; i < kAnchors; ++i) rows[i] = first + min_idx(i, anchors - 1) * dim;
  vec<T> sums[kAnchors] = {};
  for_lanes<T>(dim, [&](idx c, idx n) {
    const vec<T> x_v = load_n<T>(x + c, n);
    FF_UNROLL(4)
    for (int i = 0; i < kAnchors; ++i) {
      const vec<T> diff = load_n<T>(rows[i] + c, n) - x_v;
      sums[i] = fma(diff, diff, sums[i]);
    }
  });
  FF_UNROLL(4)
  for (int i = 0; i < kAnchors; ++i) squares[i] = sum_lanes<T>(sums[i]);
}

// Mines the anchors [first, first + anchors).
template <class T>
FF_NOINLINE void mine(const TripletParams& p, idx first, idx anchors, Hardest* hardest) {
  const T* features = static_cast<const T*>(p.features);
  for (idx i = 0; i < anchors; ++i) hardest[i] = {0, 0, -1, -1};
  for (idx j = 0; j < p.count; ++j) {
    T squares[kAnchors];
    square_distances<T>(features + first * p.dim, anchors, features + j * p.dim, p.dim, squares);
    for (idx i = 0; i < anchors; ++i)
      if (first + i != j) consider(hardest[i], static_cast<double>(squares[i]), j, p.labels[first + i] == p.labels[j]);
  }
}

template <class T>
FF_INLINE void triplet_forward(const TripletParams& p) {
  Hardest* hardest = nullptr;
  Arena a(Scratch::shared);
  hardest = a.take<Hardest>(p.count);
  const int threads = p.count * p.count * p.dim < kGrain ? 1 : p.threads;
  for_tasks(ceil_div(p.count, kAnchors), threads, [&](idx task) {
    const idx first = task * kAnchors;
    mine<T>(p, first, min_idx(kAnchors, p.count - first), hardest + first);
  });
  double total = 0, valid = 0;
  for (idx n = 0; n < p.count; ++n) {
    Hardest& at = hardest[n];
    if (at.positive < 0 || at.negative < 0) {
      at.positive = at.negative = -1;
      continue;
    }
    at.far = __builtin_sqrt(at.far), at.near = __builtin_sqrt(at.near);
    const double hinge = p.margin + at.far - at.near;
    valid += 1;
    total += hinge <= 0 ? 0 : hinge;
  }
  *static_cast<T*>(p.loss) = static_cast<T>(total / (valid > 0 ? valid : 1));
  if (!p.pairs) return;
  T* slopes = static_cast<T*>(p.slopes);
  for (idx n = 0; n < p.count; ++n) {
    const Hardest& at = hardest[n];
    const bool active = at.positive >= 0 && !(p.margin + at.far - at.near <= 0);
    p.pairs[2 * n] = at.positive, p.pairs[2 * n + 1] = at.negative;
    slopes[2 * n] = static_cast<T>(active && at.far != 0 ? 1 / (valid * at.far) : 0);
    slopes[2 * n + 1] = static_cast<T>(active && at.near != 0 ? 1 / (valid * at.near) : 0);
  }
}

template <class T>
FF_INLINE void triplet_backward(const TripletParams& p) {
  const T *features = static_cast<const T*>(p.features), *slopes = static_cast<const T*>(p.slopes);
  T* grads = static_cast<T*>(p.d_features);
  const T dloss = *static_cast<const T*>(p.dloss);
  for_columns(p.count, p.dim, p.threads, [&](idx first, idx columns) {
    for (idx n = 0; n < p.count; ++n) fill_zero(grads + n * p.dim + first, columns);
    for (idx n = 0; n < 2 * p.count; ++n) {
      if (slopes[n] == 0 || p.pairs[n] < 0) continue;
      const vec<T> slope = splat<T>(n % 2 ? -dloss * slopes[n] : dloss * slopes[n]);
      const idx anchor = n / 2 * p.dim + first, other = p.pairs[n] * p.dim + first;
      for_lanes<T>(columns, [&](idx c, idx lanes_left) {
        T *to = grads + anchor + c, *from = grads + other + c;
        const vec<T> diff = load_n<T>(features + anchor + c, lanes_left) - load_n<T>(features + other + c, lanes_left);
        store_n<T>(to, fma(slope, diff, load_n<T>(to, lanes_left)), lanes_left);
        store_n<T>(from, fma(-slope, diff, load_n<T>(from, lanes_left)), lanes_left);
      });
    }
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
