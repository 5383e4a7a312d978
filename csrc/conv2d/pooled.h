// SPDX-License-Identifier: Apache-2.0
// Max pooling after the normalisation of a convolution in training: neither act(norm(y)) nor its gradient is ever
// written in full. Forward computes them window by window and keeps the largest; backward spreads the pooled gradient
// over a block of pixels just before the block goes through the norm's backward.
#pragma once
#include "conv2d/op.h"
#include "norm/passes.h"
#include "pool/max_pool.h"
#include "simd/math.h"

namespace ff {
namespace FF_ISA {
namespace {

FF_INLINE MaxPoolParams pool_of(const Conv2dParams& p) {
  const ConvShape& s = p.shape;
  const PoolShape& q = p.pool;
  return {s.n,  s.oh,  s.ow,   s.o,     q.oh,  q.ow,        q.kh,   q.kw,    q.sh,
          q.sw, q.top, q.left, nullptr, p.out, p.positions, p.dout, nullptr, p.threads};
}

// The largest act(norm(y)) so far, its place in the window and its y.
template <class T>
struct BestOfNorm {
  Best<T> best;
  vec<T> y;

  FF_CLASS_INLINE void take(vec<T> z, ivec<T> at, vec<T> of) {
    const vec<T> kept = z == z ? y : of;
    y = z > best.value ? of : kept;
    best.take(z, at);
  }
};

// Output row i: out, places and y at the maxima. Each window computes act(norm(y)) again, which costs less than storing
// it.
template <class T, int K, Act A>
FF_NOINLINE void norm_max_row(const MaxPoolParams& m, const T* image, idx i, const NormVectors<T>& norm, T* out,
                              uint8_t* places, T* y_out) {
  const idx top = i * m.sh - m.top, row_step = m.w * m.c;
  const Taps rows = taps_inside(top, m.h, m.kh);
  for_lanes<T>(m.c, [&](idx c, idx n) {
    const vec<T> scale = load(norm.scale + c), shift = load(norm.shift + c);
    for (idx j = 0; j < m.ow; ++j) {
      const idx left = j * m.sw - m.left;
      const Taps columns = taps_inside(left, m.w, m.kw);
      const T* window = image + top * row_step + left * m.c + c;
      BestOfNorm<T> best{};
      const auto take = [&](idx k, idx l, bool first) {
        const vec<T> y = load_n<T>(window + k * row_step + l * m.c, n), z = activate<A, T>(fma(y, scale, shift));
        const ivec<T> at = splat_index<T>(k * (K ? K : m.kw) + l);
        if (first)
          best = {{z, at}, y};
        else
          best.take(z, at, y);
      };
      if (K > 0 && rows.end - rows.begin == K && columns.end - columns.begin == K) {
        FF_UNROLL(4)
        for (int k = 0; k < K; ++k) {
          FF_UNROLL(4)
          for (int l = 0; l < K; ++l) take(k, l, k + l == 0);
        }
      } else {
        for (idx k = rows.begin; k < rows.end; ++k)
          for (idx l = columns.begin; l < columns.end; ++l) take(k, l, k == rows.begin && l == columns.begin);
      }
      store_n<T>(out + j * m.c + c, best.best.value, n);
      store_n<T>(y_out + j * m.c + c, best.y, n);
      store_positions<T, uint8_t>(places + j * m.c + c, best.best.position, n);
    }
  });
}

// out, positions and best from y.
template <class T>
FF_INLINE void norm_pool_pass(const Conv2dParams& p, const T* y, const NormVectors<T>& n) {
  const MaxPoolParams m = pool_of(p);
  const idx rows = m.n * m.oh, band = band_rows(m.sh * m.w * m.c * static_cast<idx>(sizeof(T)));
  with_window(m, [&](auto, auto window) {
    with_act(p.act, [&](auto tag) {
      for_tasks(ceil_div(rows, band), p.threads, [&](idx task) {
        for (idx r = task * band; r < min_idx(rows, (task + 1) * band); ++r) {
          const idx at = r * m.ow * m.c;
          // float64 takes the form for any window: it costs a third of the time to build.
          norm_max_row<T, sizeof(T) == sizeof(float) ? decltype(window)::value : 0, decltype(tag)::value>(
              m, y + r / m.oh * m.h * m.w * m.c, r % m.oh, n, static_cast<T*>(p.out) + at,
              static_cast<uint8_t*>(p.positions) + at, static_cast<T*>(p.best) + at);
        }
      });
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
        max_pool_row_backward<T, uint8_t, decltype(window)::value>(m, static_cast<const T*>(m.dy) + image,
                                                                   static_cast<const uint8_t*>(m.positions) + image,
                                                                   row % m.h, column, column + part, block, pixel);
        block += part * pixel, at += part;
      }
    });
  }
};

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
