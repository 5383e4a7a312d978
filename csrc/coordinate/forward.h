// SPDX-License-Identifier: Apache-2.0
// Coordinate attention, forward. With running statistics and images enough an image goes through all of it at once and
// its second read is from the cache; else each step runs over the batch: pooling, middle, gates, product.
#pragma once
#include "coordinate/middle.h"

namespace ff {
namespace FF_ISA {
namespace {

// Pools channels of an image into `rows` [h][c] and `cols` [w][c], the maxima's places into row_at and col_at or, null,
// nowhere.
template <class T, bool Mean, bool Max>
FF_INLINE void pool_positions(const T* x, const ImageSize& s, idx first, idx count, const Columns<T>& columns, T* rows,
                              T* cols, T* row_at, T* col_at) {
  const auto write = [&](T* to, T* places) {
    return [=](idx i, idx c, idx n, const Pooled<T>& v) {
      store_n<T>(to + i * s.c + c, Mean && Max ? v.mean + v.max : Mean ? v.mean : v.max, n);
      if (Max && places) store_n<T>(places + i * s.c + c, v.at, n);
    };
  };
  pool_image<T, Mean, Max>(x, s, first, count, columns, write(rows, row_at), write(cols, col_at));
}

template <class T>
FF_NOINLINE void pool_kind(Pooling kind, const T* x, const ImageSize& s, idx first, idx count,
                           const Columns<T>& columns, T* rows, T* cols, T* row_at, T* col_at) {
  if (kind == Pooling::mean) pool_positions<T, true, false>(x, s, first, count, columns, rows, cols, row_at, col_at);
  if (kind == Pooling::max) pool_positions<T, false, true>(x, s, first, count, columns, rows, cols, row_at, col_at);
  if (kind == Pooling::both) pool_positions<T, true, true>(x, s, first, count, columns, rows, cols, row_at, col_at);
}

// out = x · row gate · column gate for channels of an image.
template <class T>
FF_NOINLINE void apply_gates(T* out, const T* x, const ImageSize& s, idx first, idx count, const T* rows,
                             const T* cols) {
  for (idx i = 0; i < s.h; ++i) {
    for_groups<T>(count, [&](auto group, idx at, idx n) {
      constexpr int V = decltype(group)::value;
      const idx c = first + at;
      vec<T> gate[V];
      FF_UNROLL(4)
      for (int u = 0; u < V; ++u) gate[u] = load_n<T>(rows + i * s.c + c + u * lanes<T>, n);
      for (idx j = 0; j < s.w; ++j) {
        FF_UNROLL(4)
        for (int u = 0; u < V; ++u) {
          const idx pixel = (i * s.w + j) * s.c + c + u * lanes<T>;
          __builtin_prefetch(x + pixel + s.w * s.c);
          store_n<T>(out + pixel, load_n<T>(x + pixel, n) * gate[u] * load_n<T>(cols + j * s.c + c + u * lanes<T>, n),
                     n);
        }
      }
    });
  }
}

// Images that go together: enough rows to fill a tile of the products.
FF_INLINE idx image_group(const CoordinateParams& p) {
  return max_idx(1, min_idx(p.n / 4, 14 / max_idx(1, min_idx(p.h, p.w))));
}

template <class T>
FF_INLINE void attention_by_image(const CoordinateParams& p, const MiddleForward<T>& middle) {
  const ImageSize s{p.h, p.w, p.c};
  const idx block = channel_block(p.n), group = image_group(p), ldz = middle_stride<T>(p.middle),
            size = p.h * p.w * p.c;
  for_tasks(ceil_div(p.n, group), p.threads, [&](idx task) {
    const idx first = task * group, images = min_idx(group, p.n - first), rows = images * p.h,
              positions = rows + images * p.w;
    Columns<T> columns{};
    T *pooled = nullptr, *y = nullptr, *gates = nullptr;
    Arena a(Scratch::task);
    columns.take(a, p.w, min_idx(block, p.c));
    pooled = a.take<T>(positions * p.c), gates = a.take<T>(positions * p.c), y = a.take<T>(positions * ldz);
    const T* x = static_cast<const T*>(p.x) + first * size;
    T* out = static_cast<T*>(p.out) + first * size;
    for (idx i = 0; i < images; ++i)
      for (idx c = 0; c < p.c; c += block)
        pool_kind<T>(p.kind, x + i * size, s, c, min_idx(block, p.c - c), columns, pooled + i * p.h * p.c,
                     pooled + (rows + i * p.w) * p.c, nullptr, nullptr);
    product<T>(pooled, p.c, middle.squeeze, y, ldz, positions, p.middle, p.c, middle.bias);
    middle.gates(p, false, y, ldz, y, gates, rows);
    middle.gates(p, true, y + rows * ldz, ldz, y + rows * ldz, gates + rows * p.c, positions - rows);
    for (idx i = 0; i < images; ++i)
      apply_gates<T>(out + i * size, x + i * size, s, 0, p.c, gates + i * p.h * p.c, gates + (rows + i * p.w) * p.c);
  });
}

// Every step over the whole batch; pooled, at (or null), y [positions][ldy] and gates are kept, statistics measured
// when `mean` and `m2` [blocks][stride] are there.
template <class T>
FF_INLINE void attention_by_step(const CoordinateParams& p, MiddleForward<T>& middle, T* pooled, T* at, T* y, idx ldy,
                                 T* gates, T* stats, T* mean, T* m2) {
  const ImageSize s{p.h, p.w, p.c};
  const idx rows = p.n * p.h, row_blocks = ceil_div(rows, kPositions), stride = round_up_lanes<T>(p.middle);
  const T* x = static_cast<const T*>(p.x);
  for_blocks(p.n, p.c, p.threads, [&](idx image, idx first, idx count) {
    Columns<T> columns{};
    Arena a(Scratch::task);
    columns.take(a, p.w, count);
    const idx row = image * p.h * p.c, col = (rows + image * p.w) * p.c;
    pool_kind<T>(p.kind, x + image * p.h * p.w * p.c, s, first, count, columns, pooled + row, pooled + col,
                 at ? at + row : nullptr, at ? at + col : nullptr);
  });
  for_positions(p, [&](bool columns, idx first, idx count) {
    product<T>(pooled + first * p.c, p.c, middle.squeeze, y + first * ldy, ldy, count, p.middle, p.c, middle.bias);
    const idx block = columns ? row_blocks + (first - rows) / kPositions : first / kPositions;
    if (mean) moments_rows<T>(y + first * ldy, ldy, count, p.middle, mean + block * stride, m2 + block * stride);
  });
  if (mean)
    merge_moments(
        mean, m2, position_blocks(p), stride, p.middle, p.norm.eps,
        [&](idx b) {
          return b < row_blocks ? min_idx(kPositions, rows - b * kPositions)
                                : min_idx(kPositions, p.n * p.w - (b - row_blocks) * kPositions);
        },
        stats);
  middle.norm.fill(p.norm, stats, p.middle);
  for_positions(p, [&](bool columns, idx first, idx count) {
    T* z = nullptr;
    Arena a(Scratch::task);
    z = a.take<T>(kPositions * middle_stride<T>(p.middle));
    middle.gates(p, columns, y + first * ldy, ldy, z, gates + first * p.c, count);
  });
  for_blocks(p.n, p.c, p.threads, [&](idx image, idx first, idx count) {
    const idx pixels = image * p.h * p.w * p.c;
    apply_gates<T>(static_cast<T*>(p.out) + pixels, x + pixels, s, first, count, gates + image * p.h * p.c,
                   gates + (rows + image * p.w) * p.c);
  });
}

template <class T>
FF_INLINE void attention_inference(const CoordinateParams& p) {
  const bool by_image = p.n >= 4;
  const idx positions = by_image ? 0 : p.n * (p.h + p.w), ldy = middle_stride<T>(p.middle);
  MiddleForward<T> middle{};
  T *stats = nullptr, *pooled = nullptr, *y = nullptr, *gates = nullptr;
  Arena a(Scratch::shared);
  middle.take(a, p);
  stats = a.take<T>(3 * p.middle);
  pooled = a.take<T>(positions * p.c), gates = a.take<T>(positions * p.c), y = a.take<T>(positions * ldy);
  middle.pack(p);
  running_stats<T>(static_cast<const T*>(p.norm.mean), static_cast<const T*>(p.norm.var), p.middle, p.norm.eps, stats);
  middle.norm.fill(p.norm, stats, p.middle);
  if (by_image)
    attention_by_image<T>(p, middle);
  else
    attention_by_step<T>(p, middle, pooled, nullptr, y, ldy, gates, stats, nullptr, nullptr);
}

template <class T>
FF_INLINE void attention_training(const CoordinateParams& p) {
  const idx measured = p.batch_stats ? position_blocks(p) * round_up_lanes<T>(p.middle) : 0;
  MiddleForward<T> middle{};
  T *mean = nullptr, *m2 = nullptr, *stats = static_cast<T*>(p.norm.stats);
  Arena a(Scratch::shared);
  middle.take(a, p);
  mean = a.take<T>(measured), m2 = a.take<T>(measured);
  middle.pack(p);
  if (!p.batch_stats)
    running_stats<T>(static_cast<const T*>(p.norm.mean), static_cast<const T*>(p.norm.var), p.middle, p.norm.eps,
                     stats);
  attention_by_step<T>(p, middle, static_cast<T*>(p.pooled), static_cast<T*>(p.at), static_cast<T*>(p.y), p.middle,
                       static_cast<T*>(p.gates), stats, p.batch_stats ? mean : nullptr, m2);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
