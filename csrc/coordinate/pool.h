// SPDX-License-Identifier: Apache-2.0
// Mean, maximum and the maximum's place of each row and each column of an image, in one read, and the way back: each
// gradient of a row or column to its elements. A task has an image and a block of its channels.
#pragma once
#include "coordinate/op.h"
#include "simd/groups.h"
#include "simd/arena.h"

namespace ff {
namespace FF_ISA {
namespace {

struct ImageSize {
  idx h, w, c;
};

// Channels a task takes: all there may be where there are images enough to keep the threads busy.
FF_INLINE idx channel_block(idx images) { return images >= 4 ? 256 : 64; }

// Runs body(image, first channel, channels) for blocks of channels of all images.
template <class Body>
FF_INLINE void for_blocks(idx images, idx channels, int threads, const Body& body) {
  const idx block = channel_block(images), blocks = ceil_div(channels, block);
  for_tasks(images * blocks, threads, [&](idx task) {
    const idx first = task % blocks * block;
    body(task / blocks, first, min_idx(block, channels - first));
  });
}

// What is pooled of a vector of channels; `at` is the place as a number of type T, the first among equals.
template <class T>
struct Pooled {
  vec<T> mean, max, at;
};

// Running values of the columns [w][stride].
template <class T>
struct Columns {
  T *sum, *max, *at;
  idx stride;

  void take(Arena& a, idx width, idx channels) {
    stride = round_up_lanes<T>(min_idx(channels, 256));
    sum = a.take<T>(width * stride), max = a.take<T>(width * stride), at = a.take<T>(width * stride);
  }
};

// The larger of the two and its place; a NaN wins and stays.
template <class T>
FF_INLINE void keep_larger(vec<T>& max, vec<T>& at, vec<T> x, vec<T> place) {
  const auto larger = (x > max) | (x != x);
  max = larger ? x : max;
  at = larger ? place : at;
}

// Calls row(i, c, n, pooled) and column(j, c, n, pooled) for channels [first, first + count), n lanes valid at channel
// c.
template <class T, bool Mean, bool Max, class Row, class Column>
FF_INLINE void pool_image(const T* x, const ImageSize& s, idx first, idx count, const Columns<T>& columns,
                          const Row& row, const Column& column) {
  const vec<T> lowest = splat<T>(T(-__builtin_inf())), width = splat<T>(T(s.w)), height = splat<T>(T(s.h));
  for (idx j = 0; j < s.w; ++j) {
    for_lanes<T>(count, [&](idx c, idx) {
      const idx to = j * columns.stride + c;
      if (Mean) store(columns.sum + to, vec<T>{});
      if (Max) store(columns.max + to, lowest), store(columns.at + to, vec<T>{});
    });
  }
  for (idx i = 0; i < s.h; ++i) {
    const vec<T> line = splat<T>(T(i));
    for_groups<T>(count, [&](auto group, idx c, idx n) {
      constexpr int V = decltype(group)::value;
      vec<T> sum[V], max[V], at[V];
      FF_UNROLL(4)
      for (int u = 0; u < V; ++u) sum[u] = at[u] = vec<T>{}, max[u] = lowest;
      const T* from = x + i * s.w * s.c + first + c;
      for (idx j = 0; j < s.w; ++j, from += s.c) {
        const vec<T> place = splat<T>(T(j));
        FF_UNROLL(4)
        for (int u = 0; u < V; ++u) {
          const idx to = j * columns.stride + c + u * lanes<T>;
          const vec<T> v = load_n<T>(from + u * lanes<T>, n);
          __builtin_prefetch(from + u * lanes<T> + s.w * s.c);
          if (Mean) {
            sum[u] = sum[u] + v;
            store(columns.sum + to, load(columns.sum + to) + v);
          }
          if (Max) {
            keep_larger<T>(max[u], at[u], v, place);
            vec<T> column_max = load(columns.max + to), column_at = load(columns.at + to);
            keep_larger<T>(column_max, column_at, v, line);
            store(columns.max + to, column_max), store(columns.at + to, column_at);
          }
        }
      }
      FF_UNROLL(4)
      for (int u = 0; u < V; ++u) row(i, first + c + u * lanes<T>, n, Pooled<T>{sum[u] / width, max[u], at[u]});
    });
  }
  for (idx j = 0; j < s.w; ++j) {
    for_lanes<T>(count, [&](idx c, idx n) {
      const idx from = j * columns.stride + c;
      Pooled<T> pooled{};
      if (Mean) pooled.mean = load(columns.sum + from) / height;
      if (Max) pooled.max = load(columns.max + from), pooled.at = load(columns.at + from);
      column(j, first + c, n, pooled);
    });
  }
}

// Gradients at an image's rows and columns [..][c], of their means and of their maxima, and the places of these; the
// gates of rows and columns where there are any.
template <class T>
struct Spread {
  const T *row_mean, *row_max, *row_at, *row_gate;
  const T *col_mean, *col_max, *col_at, *col_gate;
};

// dx = (dout · row gate · column gate) + mean gradients / length + maximum gradients at their places.
template <class T, bool Gated, bool Mean, bool Max>
FF_INLINE void spread_image(T* dx, const T* dout, const ImageSize& s, idx first, idx count, const Spread<T>& g) {
  const vec<T> per_width = splat<T>(T(1) / T(s.w)), per_height = splat<T>(T(1) / T(s.h)), zero = {};
  for (idx i = 0; i < s.h; ++i) {
    const vec<T> line = splat<T>(T(i));
    for_groups<T>(count, [&](auto group, idx at, idx n) {
      constexpr int V = decltype(group)::value;
      const idx c = first + at, row = i * s.c + c;
      vec<T> mean[V], max[V], place[V], gate[V];
      FF_UNROLL(4)
      for (int u = 0; u < V; ++u) {
        const idx from = row + u * lanes<T>;
        if (Mean) mean[u] = load_n<T>(g.row_mean + from, n) * per_width;
        if (Max) max[u] = load_n<T>(g.row_max + from, n), place[u] = load_n<T>(g.row_at + from, n);
        if (Gated) gate[u] = load_n<T>(g.row_gate + from, n);
      }
      for (idx j = 0; j < s.w; ++j) {
        const vec<T> here = splat<T>(T(j));
        FF_UNROLL(4)
        for (int u = 0; u < V; ++u) {
          const idx pixel = (i * s.w + j) * s.c + c + u * lanes<T>, col = j * s.c + c + u * lanes<T>;
          vec<T> d = {};
          if (Gated) {
            __builtin_prefetch(dout + pixel + s.w * s.c);
            d = load_n<T>(dout + pixel, n) * gate[u] * load_n<T>(g.col_gate + col, n);
          }
          if (Mean) d = d + fma(load_n<T>(g.col_mean + col, n), per_height, mean[u]);
          if (Max) {
            d = d + (place[u] == here ? max[u] : zero);
            d = d + (load_n<T>(g.col_at + col, n) == line ? load_n<T>(g.col_max + col, n) : zero);
          }
          store_n<T>(dx + pixel, d, n);
        }
      }
    });
  }
}

template <class T>
FF_INLINE void pool_forward(const LinePoolParams& p) {
  const ImageSize s{p.h, p.w, p.c};
  for_blocks(p.n, p.c, p.threads, [&](idx image, idx first, idx count) {
    Columns<T> columns{};
    Arena a(Scratch::task);
    columns.take(a, p.w, count);
    T *row_mean = static_cast<T*>(p.row_mean) + image * p.h * p.c,
      *row_max = static_cast<T*>(p.row_max) + image * p.h * p.c;
    T *col_mean = static_cast<T*>(p.col_mean) + image * p.w * p.c,
      *col_max = static_cast<T*>(p.col_max) + image * p.w * p.c;
    pool_image<T, true, true>(
        static_cast<const T*>(p.x) + image * p.h * p.w * p.c, s, first, count, columns,
        [&](idx i, idx c, idx n, const Pooled<T>& v) {
          store_n<T>(row_mean + i * p.c + c, v.mean, n), store_n<T>(row_max + i * p.c + c, v.max, n);
        },
        [&](idx j, idx c, idx n, const Pooled<T>& v) {
          store_n<T>(col_mean + j * p.c + c, v.mean, n), store_n<T>(col_max + j * p.c + c, v.max, n);
        });
  });
}

template <class T>
FF_INLINE void pool_backward(const LinePoolParams& p) {
  const ImageSize s{p.h, p.w, p.c};
  for_blocks(p.n, p.c, p.threads, [&](idx image, idx first, idx count) {
    Columns<T> columns{};
    T *row_at = nullptr, *col_at = nullptr;
    Arena a(Scratch::task);
    columns.take(a, p.w, count);
    row_at = a.take<T>(p.h * p.c), col_at = a.take<T>(p.w * p.c);
    const idx pixels = image * p.h * p.w * p.c, rows = image * p.h * p.c, cols = image * p.w * p.c;
    pool_image<T, false, true>(
        static_cast<const T*>(p.x) + pixels, s, first, count, columns,
        [&](idx i, idx c, idx n, const Pooled<T>& v) { store_n<T>(row_at + i * p.c + c, v.at, n); },
        [&](idx j, idx c, idx n, const Pooled<T>& v) { store_n<T>(col_at + j * p.c + c, v.at, n); });
    spread_image<T, false, true, true>(
        static_cast<T*>(p.dx) + pixels, nullptr, s, first, count,
        {static_cast<const T*>(p.d_row_mean) + rows, static_cast<const T*>(p.d_row_max) + rows, row_at, nullptr,
         static_cast<const T*>(p.d_col_mean) + cols, static_cast<const T*>(p.d_col_max) + cols, col_at, nullptr});
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
