// SPDX-License-Identifier: Apache-2.0
// Streaming softmax (Milakov and Gimelshein 2018; Dao et al. 2022): blocks of keys pass by, the output is rescaled when
// a larger score appears. One task computes some queries of one sequence, or several short sequences.
#pragma once
#include "attention/tiles.h"

namespace ff {
namespace FF_ISA {
namespace {

// Turns a tile of products into exp(score - largest so far), and updates the maxima and sums [queries] so far; rescale
// receives exp(old maximum - new one).
template <class T>
FF_NOINLINE void softmax_columns(T* tile, idx keys, idx stride, T rate, T* largest, T* total, T* rescale) {
  const vec<T> rate_v = splat<T>(rate);
  for (idx c = 0; c < stride; c += lanes<T>) {
    const vec<T> before = load(largest + c);
    vec<T> most = before;
    for (idx j = 0; j < keys; ++j) most = max_bound(load(tile + j * stride + c) * rate_v, most);
    const vec<T> origin = finite_or_zero<T>(most);
    vec<T> sum = {};
    for (idx j = 0; j < keys; ++j) {
      const vec<T> weight = exp<T>(load(tile + j * stride + c) * rate_v - origin);
      sum = sum + weight;
      store(tile + j * stride + c, weight);
    }
    const vec<T> factor = exp<T>(before - origin);
    store(largest + c, most);
    store(total + c, fma(load(total + c), factor, sum));
    store(rescale + c, factor);
  }
}

template <class T>
FF_INLINE void scale_rows(T* rows, idx count, idx columns, const T* factors) {
  for (idx r = 0; r < count; ++r)
    for_lanes<T>(columns, [&](idx c, idx n) {
      store_n<T>(rows + r * columns + c, load_n<T>(rows + r * columns + c, n) * splat<T>(factors[r]), n);
    });
}

template <class T>
struct ForwardScratch {
  T *packed, *tile, *values, *largest, *total, *rescale;

  FF_CLASS_INLINE void take(Arena& a, const DotProductParams& p, idx queries) {
    const idx stride = round_up_lanes<T>(queries), keys = min_idx(kKeys, p.keys);
    packed = a.take<T>(query_space<T>(queries, p.depth));
    tile = a.take<T>(keys * stride);
    values = a.take<T>(room<T>(keys, p.width));
    largest = a.take<T>(stride), total = a.take<T>(stride), rescale = a.take<T>(stride);
  }
};

// Queries [first, first + count) of sequence b.
template <class T>
FF_INLINE void forward_block(const DotProductParams& p, const ForwardScratch<T>& s, T rate, idx b, idx first,
                             idx count) {
  const T* q = static_cast<const T*>(p.q) + (b * p.queries + first) * p.depth;
  const T* k = static_cast<const T*>(p.k) + b * p.keys * p.depth;
  const T* v = static_cast<const T*>(p.v) + b * p.keys * p.width;
  T* out = static_cast<T*>(p.out) + (b * p.queries + first) * p.width;
  const idx stride = round_up_lanes<T>(count);
  pack_queries(s.packed, q, count, p.depth);
  for (idx i = 0; i < stride; ++i) s.largest[i] = -T(__builtin_inf()), s.total[i] = T(0);
  for (idx key = 0; key < p.keys; key += kKeys) {
    const idx keys = min_idx(kKeys, p.keys - key);
    key_products<T>(s.tile, k + key * p.depth, keys, q, s.packed, count, p.depth);
    softmax_columns<T>(s.tile, keys, stride, rate, s.largest, s.total, s.rescale);
    if (key) scale_rows<T>(out, count, p.width, s.rescale);
    const Rows<T> values = with_room<T>(v + key * p.width, keys, p.width, s.values);
    product<T, true>(s.tile, stride, values, out, p.width, count, p.width, keys, key > 0);
  }
  for (idx i = 0; i < stride; i += lanes<T>) store(s.total + i, splat<T>(1) / load(s.total + i));
  scale_rows<T>(out, count, p.width, s.total);
  if (!p.stats) return;
  T* stats = static_cast<T*>(p.stats) + b * p.queries + first;
  for_lanes<T>(count, [&](idx i, idx n) {
    store_n<T>(stats + i, load(s.largest + i), n);
    store_n<T>(stats + p.batch * p.queries + i, load(s.total + i), n);
  });
}

template <class T>
FF_INLINE void dot_product_forward(const DotProductParams& p) {
  const idx blocks = ceil_div(p.queries, kQueries), units = p.batch * blocks, queries = min_idx(kQueries, p.queries);
  const idx group = max_idx(1, kGrain / max_idx(1, queries * p.keys * (p.depth + p.width)));
  const T rate = score_rate<T>(p);
  for_tasks(ceil_div(units, group), p.threads, [&](idx task) {
    ForwardScratch<T> scratch{};
    Arena a(Scratch::task);
    scratch.take(a, p, queries);
    for (idx unit = task * group; unit < min_idx(units, (task + 1) * group); ++unit) {
      const idx first = unit % blocks * kQueries;
      forward_block<T>(p, scratch, rate, unit / blocks, first, min_idx(kQueries, p.queries - first));
    }
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
