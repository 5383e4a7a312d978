// SPDX-License-Identifier: Apache-2.0
// Batch normalisation and activation over a block of rows [rows][stride] of one pixel each, per-channel vectors beside:
//   z = y·scale + shift, a = act(z)            scale = weight·invstd, shift = bias - mean·scale
// Vectorised over channels. Per-channel vectors have room for a whole last vector.
#pragma once
#include "simd/math.h"

namespace ff {
namespace FF_ISA {
namespace {

// dst = act(src·scale + shift); scale null: act(src). dst may be src.
template <class T>
FF_INLINE void affine_act_rows(T* dst, idx dst_stride, const T* src, idx src_stride, idx rows, idx channels,
                               const T* scale, const T* shift, Act act) {
  with_act(act, [&](auto tag) {
    constexpr Act A = decltype(tag)::value;
    for (idx r = 0; r < rows; ++r) {
      const T* y = src + r * src_stride;
      T* a = dst + r * dst_stride;
      for_lanes<T>(channels, [&](idx c, idx n) {
        vec<T> z = load_n<T>(y + c, n);
        if (scale) z = fma(z, load(scale + c), load(shift + c));
        store_n<T>(a + c, activate<A, T>(z), n);
      });
    }
  });
}

// Mean and sum of squared deviations of each channel over the rows, in one read: deviations are taken from the first
// row, which keeps the subtraction from cancelling when the mean is far from zero.
template <class T>
FF_INLINE void moments_rows(const T* src, idx stride, idx rows, idx channels, T* mean, T* m2) {
  for_lanes<T>(channels, [&](idx c, idx n) {
    const vec<T> origin = load_n<T>(src + c, n);
    vec<T> sum[2] = {}, squares[2] = {};
    idx r = 0;
    for (; r + 2 <= rows; r += 2) {
      FF_UNROLL(2)
      for (int u = 0; u < 2; ++u) {
        const vec<T> d = load_n<T>(src + (r + u) * stride + c, n) - origin;
        sum[u] = sum[u] + d;
        squares[u] = fma(d, d, squares[u]);
      }
    }
    if (r < rows) {
      const vec<T> d = load_n<T>(src + r * stride + c, n) - origin;
      sum[0] = sum[0] + d;
      squares[0] = fma(d, d, squares[0]);
    }
    const vec<T> total = sum[0] + sum[1], count = splat<T>(static_cast<T>(rows));
    store(mean + c, origin + total / count);
    const vec<T> deviation = squares[0] + squares[1] - total * total / count;
    store(m2 + c, max_bound(deviation, vec<T>{}));
  });
}

// Column sums of g into sum_g and of g·(y - mean) into sum_gx (y null: sum_g alone), added to what is there.
template <class T>
FF_INLINE void sums_rows(const T* g, idx g_stride, const T* y, idx y_stride, idx rows, idx channels, const T* mean,
                         T* sum_g, T* sum_gx) {
  for_lanes<T>(channels, [&](idx c, idx n) {
    vec<T> s = load(sum_g + c);
    if (!y) {
      for (idx r = 0; r < rows; ++r) s = s + load_n<T>(g + r * g_stride + c, n);
      store(sum_g + c, s);
      return;
    }
    vec<T> sx = load(sum_gx + c);
    const vec<T> mean_v = load(mean + c);
    for (idx r = 0; r < rows; ++r) {
      const vec<T> g_v = load_n<T>(g + r * g_stride + c, n);
      s = s + g_v;
      sx = fma(g_v, load_n<T>(y + r * y_stride + c, n) - mean_v, sx);
    }
    store(sum_g + c, s);
    store(sum_gx + c, sx);
  });
}

// g = dz · act'(z), z = y·scale + shift (scale null: z = y). g may be dz.
template <class T>
FF_INLINE void act_grad_rows(T* g, idx g_stride, const T* dz, idx dz_stride, const T* y, idx y_stride, idx rows,
                             idx channels, const T* scale, const T* shift, Act act) {
  with_act(act, [&](auto tag) {
    constexpr Act A = decltype(tag)::value;
    for (idx r = 0; r < rows; ++r) {
      for_lanes<T>(channels, [&](idx c, idx n) {
        const vec<T> dz_v = load_n<T>(dz + r * dz_stride + c, n);
        if constexpr (A == Act::none) {
          store_n<T>(g + r * g_stride + c, dz_v, n);
        } else {
          vec<T> z = load_n<T>(y + r * y_stride + c, n);
          if (scale) z = fma(z, load(scale + c), load(shift + c));
          store_n<T>(g + r * g_stride + c, activate_grad<A, T>(dz_v, z), n);
        }
      });
    }
  });
}

// The normalisation's backward is affine in (g, y): dy = slope·g + y·curve + offset.
template <class T>
struct NormGrad {
  const T *slope, *curve, *offset;
};

// dst = slope·g + curve·y + offset with g = dz·act'(y·scale + shift). dst may be dz.
template <class T>
FF_INLINE void norm_act_grad_rows(T* dst, idx dst_stride, const T* dz, idx dz_stride, const T* y, idx y_stride, idx rows,
                                  idx channels, const T* scale, const T* shift, const NormGrad<T>& norm, Act act) {
  with_act(act, [&](auto tag) {
    constexpr Act A = decltype(tag)::value;
    for (idx r = 0; r < rows; ++r) {
      for_lanes<T>(channels, [&](idx c, idx n) {
        const vec<T> y_v = load_n<T>(y + r * y_stride + c, n);
        vec<T> g = load_n<T>(dz + r * dz_stride + c, n);
        if constexpr (A != Act::none) g = activate_grad<A, T>(g, fma(y_v, load(scale + c), load(shift + c)));
        const vec<T> rest = fma(y_v, load(norm.curve + c), load(norm.offset + c));
        store_n<T>(dst + r * dst_stride + c, fma(g, load(norm.slope + c), rest), n);
      });
    }
  });
}

// Column sums, as sums_rows, of g = dz·act'(z) without writing g.
template <class T>
FF_INLINE void act_grad_sums_rows(const T* dz, idx dz_stride, const T* y, idx y_stride, idx rows, idx channels,
                                  const T* scale, const T* shift, const T* mean, Act act, T* sum_g, T* sum_gx) {
  with_act(act, [&](auto tag) {
    constexpr Act A = decltype(tag)::value;
    for_lanes<T>(channels, [&](idx c, idx n) {
      vec<T> s = load(sum_g + c), sx = load(sum_gx + c);
      const vec<T> scale_v = load(scale + c), shift_v = load(shift + c), mean_v = load(mean + c);
      for (idx r = 0; r < rows; ++r) {
        const vec<T> y_v = load_n<T>(y + r * y_stride + c, n);
        const vec<T> g = activate_grad<A, T>(load_n<T>(dz + r * dz_stride + c, n), fma(y_v, scale_v, shift_v));
        s = s + g;
        sx = fma(g, y_v - mean_v, sx);
      }
      store(sum_g + c, s);
      store(sum_gx + c, sx);
    });
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
