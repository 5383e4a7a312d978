// SPDX-License-Identifier: Apache-2.0
// Probabilities are recomputed tile by tile from the saved maxima and sums. Where all keys of a sequence fit in one
// tile, a task computes every gradient of it; longer ones take two passes, by keys (dk, dv) and by queries (dq,
// dscale), so that no two tasks add to the same place.
#pragma once
#include "attention/tiles.h"

namespace ff {
namespace FF_ISA {
namespace {

template <class T>
struct BackwardScratch {
  T *packed_q, *packed_dout, *weights, *ds, *q, *dout, *k, *largest, *inverse, *delta;

  FF_CLASS_INLINE void take(Arena& a, const DotProductParams& p) {
    const idx queries = min_idx(kQueries, p.queries), keys = min_idx(kKeys, p.keys),
              stride = round_up_lanes<T>(queries);
    packed_q = a.take<T>(query_space<T>(queries, p.depth));
    packed_dout = a.take<T>(query_space<T>(queries, p.width));
    weights = a.take<T>(keys * stride), ds = a.take<T>(keys * stride);
    q = a.take<T>(room<T>(queries, p.depth)), dout = a.take<T>(room<T>(queries, p.width));
    k = a.take<T>(room<T>(keys, p.depth));
    largest = a.take<T>(stride), inverse = a.take<T>(stride), delta = a.take<T>(stride);
  }
};

// weights and ds hold products q·k and dout·v; they become p and rate·ds. Returns sum ds·(q·k).
template <class T>
FF_NOINLINE double score_grads(const BackwardScratch<T>& s, idx keys, idx stride, T rate) {
  const vec<T> rate_v = splat<T>(rate);
  double total = 0;
  for (idx c = 0; c < stride; c += lanes<T>) {
    const vec<T> origin = load(s.largest + c), inverse = load(s.inverse + c), delta = load(s.delta + c);
    vec<T> sum = {};
    for (idx j = 0; j < keys; ++j) {
      T *weights = s.weights + j * stride + c, *ds = s.ds + j * stride + c;
      const vec<T> raw = load(weights), weight = exp<T>(raw * rate_v - origin) * inverse;
      const vec<T> grad = weight * (load(ds) - delta);
      sum = fma(grad, raw, sum);
      store(weights, weight);
      store(ds, grad * rate_v);
    }
    total += static_cast<double>(sum_lanes<T>(sum));
  }
  return total;
}

// A block of queries, and what every tile of it needs; a lane beyond the queries has probability 0.
template <class T>
struct QueryBlock {
  const T *q, *dout;
  idx count, stride;

  FF_CLASS_INLINE QueryBlock(const DotProductParams& p, const BackwardScratch<T>& s, idx b, idx first)
      : q(static_cast<const T*>(p.q) + (b * p.queries + first) * p.depth),
        dout(static_cast<const T*>(p.dout) + (b * p.queries + first) * p.width),
        count(min_idx(kQueries, p.queries - first)), stride(round_up_lanes<T>(count)) {
    const T* out = static_cast<const T*>(p.out) + (b * p.queries + first) * p.width;
    const T* stats = static_cast<const T*>(p.stats) + b * p.queries + first;
    pack_queries(s.packed_q, q, count, p.depth);
    pack_queries(s.packed_dout, dout, count, p.width);
    copy_padded(s.largest, stats, count);
    copy_padded(s.inverse, stats + p.batch * p.queries, count);
    for (idx i = 0; i < stride; ++i)
      s.delta[i] = i < count ? inner_product<T>(dout + i * p.width, out + i * p.width, p.width) : T(0);
    for (idx i = 0; i < stride; i += lanes<T>) store(s.largest + i, finite_or_zero<T>(load(s.largest + i)));
  }
};

// Fills s.weights and s.ds for keys [key, key + keys) of sequence b; returns sum ds·(q·k).
template <class T>
FF_INLINE double tile_grads(const DotProductParams& p, const BackwardScratch<T>& s, const QueryBlock<T>& block, T rate,
                            idx b, idx key, idx keys) {
  const T* k = static_cast<const T*>(p.k) + (b * p.keys + key) * p.depth;
  const T* v = static_cast<const T*>(p.v) + (b * p.keys + key) * p.width;
  key_products<T>(s.weights, k, keys, block.q, s.packed_q, block.count, p.depth);
  key_products<T>(s.ds, v, keys, block.dout, s.packed_dout, block.count, p.width);
  return score_grads<T>(s, keys, block.stride, rate);
}

// dk and dv of keys [key, key + keys), added up over the blocks of queries.
template <class T>
FF_INLINE void key_grads(const DotProductParams& p, const BackwardScratch<T>& s, const QueryBlock<T>& block, idx b,
                         idx key, idx keys, bool accumulate) {
  if (p.dk) {
    T* dk = static_cast<T*>(p.dk) + (b * p.keys + key) * p.depth;
    const Rows<T> q = with_room<T>(block.q, block.count, p.depth, s.q);
    product<T, false>(s.ds, block.stride, q, dk, p.depth, keys, p.depth, block.count, accumulate);
  }
  if (p.dv) {
    T* dv = static_cast<T*>(p.dv) + (b * p.keys + key) * p.width;
    const Rows<T> dout = with_room<T>(block.dout, block.count, p.width, s.dout);
    product<T, false>(s.weights, block.stride, dout, dv, p.width, keys, p.width, block.count, accumulate);
  }
}

// dq of a block of queries, added up over the blocks of keys.
template <class T>
FF_INLINE void query_grads(const DotProductParams& p, const BackwardScratch<T>& s, const QueryBlock<T>& block, idx b,
                           idx first, idx key, idx keys, bool accumulate) {
  if (!p.dq) return;
  T* dq = static_cast<T*>(p.dq) + (b * p.queries + first) * p.depth;
  const Rows<T> k = with_room<T>(static_cast<const T*>(p.k) + (b * p.keys + key) * p.depth, keys, p.depth, s.k);
  product<T, true>(s.ds, block.stride, k, dq, p.depth, block.count, p.depth, keys, accumulate);
}

// Runs body(unit, scratch) for `units` units of `cost` multiply-adds.
template <class T, class Body>
FF_INLINE void for_units(const DotProductParams& p, idx units, idx cost, const Body& body) {
  const idx group = max_idx(1, kGrain / max_idx(1, cost));
  for_tasks(ceil_div(units, group), p.threads, [&](idx task) {
    BackwardScratch<T> scratch{};
    Arena a(Scratch::task);
    scratch.take(a, p);
    for (idx unit = task * group; unit < min_idx(units, (task + 1) * group); ++unit) body(unit, scratch);
  });
}

template <class T>
FF_INLINE void dot_product_backward(const DotProductParams& p) {
  const idx query_blocks = ceil_div(p.queries, kQueries), key_blocks = ceil_div(p.keys, kKeys);
  // Fewer sequences than this would leave threads idle.
  const bool whole = key_blocks == 1 && (query_blocks == 1 || p.batch >= 8);
  const idx units = whole ? p.batch : p.batch * query_blocks, cost = p.queries * p.keys * (p.depth + p.width);
  const T rate = score_rate<T>(p);
  double* parts = nullptr;
  Arena a(Scratch::shared);
  parts = a.take<double>(units);
  if (whole || p.dk || p.dv)
    for_units<T>(p, p.batch * key_blocks, 2 * cost / key_blocks, [&](idx unit, const BackwardScratch<T>& s) {
      const idx b = unit / key_blocks, key = unit % key_blocks * kKeys, keys = min_idx(kKeys, p.keys - key);
      double part = 0;
      for (idx first = 0; first < p.queries; first += kQueries) {
        const QueryBlock<T> block(p, s, b, first);
        part += tile_grads(p, s, block, rate, b, key, keys);
        key_grads(p, s, block, b, key, keys, first > 0);
        if (whole) query_grads(p, s, block, b, first, key, keys, false);
      }
      if (whole) parts[unit] = part;
    });
  if (!whole && (p.dq || p.dscale))
    for_units<T>(p, units, 2 * cost / query_blocks, [&](idx unit, const BackwardScratch<T>& s) {
      const idx b = unit / query_blocks, first = unit % query_blocks * kQueries;
      const QueryBlock<T> block(p, s, b, first);
      double part = 0;
      for (idx key = 0; key < p.keys; key += kKeys) {
        const idx keys = min_idx(kKeys, p.keys - key);
        part += tile_grads(p, s, block, rate, b, key, keys);
        query_grads(p, s, block, b, first, key, keys, key > 0);
      }
      parts[unit] = part;
    });
  if (!p.dscale) return;
  double total = 0;
  for (idx unit = 0; unit < units; ++unit) total += parts[unit];
  *static_cast<T*>(p.dscale) = static_cast<T>(total * p.factor);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
