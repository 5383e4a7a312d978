// SPDX-License-Identifier: Apache-2.0
// Mean and maximum of each channel of an image in one read, and their gradient.
#pragma once
#include "pool/best.h"
#include "pool/op.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr int kPoolGroup = kRegisters == 32 ? 4 : 2;  // vectors of channels at a time
constexpr idx kSumRows = 256;                         // rows that are summed before they join the total

// Where an image's mean, maximum and the maximum's pixel go; mean or maximum (with its pixel) may be null.
template <class T>
struct Pooled {
  T *avg, *max;
  int32_t* position;
};

// Sum, maximum and the maximum's row of V vectors of columns over rows of `stride` elements.
template <class T, int V>
FF_INLINE void pool_columns(const T* x, idx stride, idx rows, idx n, Pooled<T> out) {
  constexpr idx L = lanes<T>;
  vec<T> total[V] = {};
  Best<T> best[V];
  FF_UNROLL(4)
  for (int u = 0; u < V; ++u) best[u] = {load_n<T>(x + u * L, n), ivec<T>{}};
  ivec<T> row = {};
  for (idx first = 0; first < rows; first += kSumRows) {
    vec<T> sum[V] = {};
    for (idx r = first; r < min_idx(rows, first + kSumRows); ++r) {
      FF_UNROLL(4)
      for (int u = 0; u < V; ++u) {
        const vec<T> v = load_n<T>(x + r * stride + u * L, n);
        sum[u] = sum[u] + v;
        best[u].take(v, row);
      }
      row = row + 1;
    }
    FF_UNROLL(4)
    for (int u = 0; u < V; ++u) total[u] = total[u] + sum[u];
  }
  FF_UNROLL(4)
  for (int u = 0; u < V; ++u) {
    if (out.avg) store_n<T>(out.avg + u * L, total[u], n);
    if (!out.max) continue;
    store_n<T>(out.max + u * L, best[u].value, n);
    store_positions<T, int32_t>(out.position + u * L, best[u].position, n);
  }
}

template <class T>
FF_INLINE Pooled<T> from_channel(Pooled<T> p, idx c) {
  return {p.avg ? p.avg + c : nullptr, p.max ? p.max + c : nullptr, p.max ? p.position + c : nullptr};
}

template <class T>
FF_NOINLINE void pool_rows(const T* x, idx rows, idx columns, Pooled<T> out) {
  constexpr idx L = lanes<T>;
  idx c = 0;
  for (; c + kPoolGroup * L <= columns; c += kPoolGroup * L)
    pool_columns<T, kPoolGroup>(x + c, columns, rows, L, from_channel(out, c));
  for (; c < columns; c += L) pool_columns<T, 1>(x + c, columns, rows, min_idx(L, columns - c), from_channel(out, c));
}

// Whether v at pixel `at` comes before `best` at pixel `best_at`.
template <class T>
FF_INLINE bool precedes(T v, idx at, T best, idx best_at) {
  if (v != v) return best == best || at > best_at;
  return v > best || (v == best && at < best_at);
}

// Mean, maximum and its pixel of an image [pixels][channels]. Few channels leave lanes and the adders' latency unused:
// then several pixels make up one row, and their columns are merged at the end.
template <class T>
FF_NOINLINE void pool_image(const T* x, idx pixels, idx channels, Pooled<T> out) {
  constexpr idx kMost = kPoolGroup * lanes<T>;
  idx fold = 1;
  while (2 * fold * channels <= kMost && pixels % (2 * fold) == 0) fold *= 2;
  if (fold == 1) {
    pool_rows<T>(x, pixels, channels, out);
  } else {
    T avg[kMost], max[kMost];
    int32_t position[kMost];
    pool_rows<T>(x, pixels / fold, fold * channels, {avg, max, position});
    for (idx c = 0; c < channels; ++c) {
      T sum = avg[c], best = max[c];
      idx at = position[c] * fold;
      for (idx f = 1; f < fold; ++f) {
        const idx from = f * channels + c, pixel = position[from] * fold + f;
        sum += avg[from];
        if (precedes(max[from], pixel, best, at)) best = max[from], at = pixel;
      }
      if (out.avg) out.avg[c] = sum;
      if (out.max) out.max[c] = best, out.position[c] = static_cast<int32_t>(at);
    }
  }
  if (!out.avg) return;
  const vec<T> count = splat<T>(static_cast<T>(pixels));
  for_lanes<T>(channels, [&](idx c, idx n) { store_n<T>(out.avg + c, load_n<T>(out.avg + c, n) / count, n); });
}

// Images a task.
template <class T>
FF_INLINE idx pool_images(const GlobalPoolParams& p) {
  constexpr idx kBytes = 32 << 10;
  return max_idx(1, kBytes / max_idx(1, p.pixels * p.c * static_cast<idx>(sizeof(T))));
}

template <class T>
FF_INLINE void global_pool_forward(const GlobalPoolParams& p) {
  const idx group = pool_images<T>(p);
  if (p.pixels * p.c == 0) {  // the mean of nothing is NaN
    for (idx i = 0; p.avg && i < p.n * p.c; ++i) static_cast<T*>(p.avg)[i] = static_cast<T>(__builtin_nan(""));
    return;
  }
  for_tasks(ceil_div(p.n, group), p.threads, [&](idx task) {
    for (idx i = task * group; i < min_idx(p.n, (task + 1) * group); ++i)
      pool_image<T>(static_cast<const T*>(p.x) + i * p.pixels * p.c, p.pixels, p.c,
                    from_channel(Pooled<T>{static_cast<T*>(p.avg), static_cast<T*>(p.max), p.positions}, i * p.c));
  });
}

// dx[pixel] = davg / pixels, and dmax in addition at each maximum.
template <class T>
FF_INLINE void global_pool_backward(const GlobalPoolParams& p) {
  const idx group = pool_images<T>(p);
  const vec<T> count = splat<T>(static_cast<T>(p.pixels));
  if (p.pixels == 0) return;
  for_tasks(ceil_div(p.n, group), p.threads, [&](idx task) {
    for (idx i = task * group; i < min_idx(p.n, (task + 1) * group); ++i) {
      T* dx = static_cast<T*>(p.dx) + i * p.pixels * p.c;
      const T* davg = p.d_avg ? static_cast<const T*>(p.d_avg) + i * p.c : nullptr;
      for_lanes<T>(p.c, [&](idx c, idx n) {
        const vec<T> share = davg ? load_n<T>(davg + c, n) / count : vec<T>{};
        for (idx pixel = 0; pixel < p.pixels; ++pixel) store_n<T>(dx + pixel * p.c + c, share, n);
      });
      if (!p.d_max) continue;
      for (idx c = 0; c < p.c; ++c)
        dx[p.positions[i * p.c + c] * p.c + c] += static_cast<const T*>(p.d_max)[i * p.c + c];
    }
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
