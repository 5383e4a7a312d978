// SPDX-License-Identifier: Apache-2.0
// Max pooling behind the normalisation of a convolution in training: neither act(norm(y)) nor its gradient is ever written
// in full. Forward activates a band of rows in L2 and keeps each window's largest; backward spreads the pooled gradient
// over a block of pixels just before the block goes through the norm's backward.
#pragma once
#include "conv2d/op.h"
#include "norm/passes.h"
#include "pool/max_pool.h"

namespace ff {
namespace FF_ISA {
namespace {

FF_INLINE MaxPoolParams pool_of(const Conv2dParams& p) {
  const ConvShape& s = p.shape;
  const PoolShape& q = p.pool;
  return {s.n, s.oh, s.ow, s.o, q.oh, q.ow, q.kh, q.kw, q.sh, q.sw, q.top, q.left,
          nullptr, p.out, p.positions, p.dout, nullptr, p.threads};
}

// y at the maxima of output row i.
template <class T>
FF_NOINLINE void best_of_row(const MaxPoolParams& m, const T* y, idx i, const uint8_t* positions, T* best) {
  const idx top = i * m.sh - m.top;
  const Taps rows = taps_inside(top, m.h, m.kh);
  for (idx j = 0; j < m.ow; ++j) {
    const idx left = j * m.sw - m.left;
    const Taps columns = taps_inside(left, m.w, m.kw);
    for_lanes<T>(m.c, [&](idx c, idx n) {
      const ivec<T> place = load_positions<T, uint8_t>(positions + j * m.c + c, n);
      vec<T> value = {};
      for (idx k = rows.begin; k < rows.end; ++k)
        for (idx l = columns.begin; l < columns.end; ++l) {
          const vec<T> v = load_n<T>(y + ((top + k) * m.w + left + l) * m.c + c, n);
          value = place == splat_index<T>(k * m.kw + l) ? v : value;
        }
      store_n<T>(best + j * m.c + c, value, n);
    });
  }
}

// out, positions and best from y; `n` with vectors for `times` pixels of a row, see Wide.
template <class T>
FF_INLINE void norm_pool_pass(const Conv2dParams& p, const T* y, const NormVectors<T>& n, idx times) {
  constexpr idx kBandBytes = 128 << 10;
  const MaxPoolParams m = pool_of(p);
  const idx row = m.w * m.c, rows = kBandBytes / (max_idx(1, row) * static_cast<idx>(sizeof(T)));
  const idx band = max_idx(1, min_idx(m.oh, (rows - m.kh) / m.sh + 1)), per_image = ceil_div(m.oh, band);
  with_window(m, [&](auto, auto window) {
    constexpr int K = decltype(window)::value;
    for_tasks(m.n * per_image, p.threads, [&](idx task) {
      const idx image = task / per_image, first = task % per_image * band, end = min_idx(m.oh, first + band);
      const idx lo = max_idx(0, first * m.sh - m.top), hi = min_idx(m.h, (end - 1) * m.sh - m.top + m.kh);
      const T* from = y + image * m.h * row;
      T* z = nullptr;
      lay_out(Scratch::task, [&](Arena& a) { z = a.take<T>((hi - lo) * row); });
      affine_act_rows<T>(z, m.c * times, from + lo * row, m.c * times, (hi - lo) * m.w / times, m.c * times, n.scale, n.shift, p.act);
      for (idx i = first; i < end; ++i) {
        const idx at = (image * m.oh + i) * m.ow * m.c;
        uint8_t* places = static_cast<uint8_t*>(p.positions) + at;
        max_pool_row<T, uint8_t, K, true>(m, z - lo * row, i, static_cast<T*>(p.out) + at, places);
        best_of_row<T>(m, from, i, places, static_cast<T*>(p.best) + at);
      }
    });
  });
}

// dz for PointwiseBackward: `rows` rows of `times` pixels each from `first` on, gathered from the pooled gradient.
template <class T>
struct PooledGradient {
  MaxPoolParams m;
  idx times;

  static void fill(const void* context, T* block, idx stride, idx first, idx rows) {
    const MaxPoolParams& m = static_cast<const PooledGradient*>(context)->m;
    const idx times = static_cast<const PooledGradient*>(context)->times;
    const idx pixel = stride / times, end = (first + rows) * times;
    with_window(m, [&](auto, auto window) {
      for (idx at = first * times; at < end;) {
        const idx row = at / m.w, column = at % m.w, part = min_idx(m.w - column, end - at);
        const idx image = row / m.h * m.oh * m.ow * m.c;
        max_pool_row_backward<T, uint8_t, decltype(window)::value>(
            m, static_cast<const T*>(m.dy) + image, static_cast<const uint8_t*>(m.positions) + image, row % m.h, column,
            column + part, block, pixel);
        block += part * pixel, at += part;
      }
    });
  }
};

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
