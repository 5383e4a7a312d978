// SPDX-License-Identifier: Apache-2.0
// Passes over a block of rows [rows][stride] of one pixel each, per-channel vectors beside:
//   z = y·scale + shift, a = act(z)            scale = weight·invstd, shift = bias - mean·scale
// Vectorised over channels in groups of vectors whose per-channel operands stay in registers while the rows go by.
// Per-channel vectors have room for a whole last vector.
#include "primitives/local.h"
#include "simd/groups.h"
#include "simd/math.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr idx kPrefetchBytes = 2048;  // about the latency of memory at its bandwidth: 80 ns × 25 GB/s

template <class T>
FF_INLINE void store_or_stream(T* p, vec<T> v, idx n, bool streamed) {
  if (streamed)
    stream(p, v);
  else
    store_n<T>(p, v, n);
}

// Rows ahead that a stream of rows of `stride` elements is fetched.
template <class T>
FF_INLINE idx prefetch_distance(idx stride) {
  const idx bytes = stride * static_cast<idx>(sizeof(T));
  return (kPrefetchBytes + bytes - 1) / bytes * stride;
}

// dst = act(src·scale + shift); scale null: act(src). dst may be src. For `streamed` see streamable().
template <class T>
FF_NOINLINE void affine_act(T* dst, idx dst_stride, const T* src, idx src_stride, idx rows, idx channels,
                            const T* scale, const T* shift, Act act, bool streamed) {
  const idx ahead = prefetch_distance<T>(src_stride);
  with_act(act, [&](auto tag) {
    for_groups<T>(channels, [&](auto count, idx c, idx n) {
      constexpr Act A = decltype(tag)::value;
      constexpr int V = decltype(count)::value;
      const auto scale_v = Channels<T, V>::from(scale, c), shift_v = Channels<T, V>::from(shift, c);
      for (idx r = 0; r < rows; ++r) {
        FF_UNROLL(4)
        for (int u = 0; u < V; ++u) {
          const T* y = src + r * src_stride + c + u * lanes<T>;
          __builtin_prefetch(y + ahead);
          vec<T> z = load_n<T>(y, n);
          if (scale) z = fma(z, scale_v.v[u], shift_v.v[u]);
          store_or_stream<T>(dst + r * dst_stride + c + u * lanes<T>, activate<A, T>(z), n, streamed);
        }
      }
    });
  });
}

// Mean and sum of squared deviations of each channel over the rows, in one read: deviations are taken from the first
// row, which keeps the subtraction from cancelling when the mean is far from zero. With `copy` not null the rows are
// written there, past the caches.
template <class T>
FF_NOINLINE void moments(const T* src, idx stride, idx rows, idx channels, T* mean, T* m2, T* copy, idx copy_stride) {
  for_groups<T>(channels, [&](auto count, idx c, idx n) {
    constexpr int V = decltype(count)::value;
    Channels<T, V> origin, sum = Channels<T, V>::from(nullptr, c), squares = sum;
    FF_UNROLL(4)
    for (int u = 0; u < V; ++u) origin.v[u] = load_n<T>(src + c + u * lanes<T>, n);
    for (idx r = 0; r < rows; ++r) {
      FF_UNROLL(4)
      for (int u = 0; u < V; ++u) {
        const vec<T> v = load_n<T>(src + r * stride + c + u * lanes<T>, n);
        if (copy) stream(copy + r * copy_stride + c + u * lanes<T>, v);
        const vec<T> d = v - origin.v[u];
        sum.v[u] = sum.v[u] + d;
        squares.v[u] = fma(d, d, squares.v[u]);
      }
    }
    const vec<T> rows_v = splat<T>(static_cast<T>(rows));
    FF_UNROLL(4)
    for (int u = 0; u < V; ++u) {
      store(mean + c + u * lanes<T>, origin.v[u] + sum.v[u] / rows_v);
      store(m2 + c + u * lanes<T>, max_bound(squares.v[u] - sum.v[u] * sum.v[u] / rows_v, vec<T>{}));
    }
  });
}

// Adds the column sums of g to sum_g.
template <class T>
FF_NOINLINE void sums(const T* g, idx stride, idx rows, idx channels, T* sum_g) {
  for_groups<T>(channels, [&](auto count, idx c, idx n) {
    constexpr int V = decltype(count)::value;
    auto sum = Channels<T, V>::from(sum_g, c);
    for (idx r = 0; r < rows; ++r) {
      FF_UNROLL(4)
      for (int u = 0; u < V; ++u) sum.v[u] = sum.v[u] + load_n<T>(g + r * stride + c + u * lanes<T>, n);
    }
    sum.to(sum_g, c);
  });
}

// g = dz·act'(z); with g not null it is written (it may be dz), with `scaled` times scale; with sum_g not null the
// column sums of g and of g·(y - mean) are added to sum_g and sum_gx.
template <class T>
FF_NOINLINE void act_grad(T* g, idx g_stride, const T* dz, idx dz_stride, const T* y, idx y_stride, idx rows,
                          idx channels, const NormAct<T>& norm, T* sum_g, T* sum_gx, bool streamed, bool scaled) {
  const idx ahead_dz = prefetch_distance<T>(dz_stride), ahead_y = prefetch_distance<T>(y_stride);
  with_act(norm.act, [&](auto tag) {
    for_groups<T>(channels, [&](auto count, idx c, idx n) {
      constexpr Act A = decltype(tag)::value;
      constexpr int V = decltype(count)::value;
      const auto scale = Channels<T, V>::from(norm.scale, c), shift = Channels<T, V>::from(norm.shift, c);
      const auto mean = Channels<T, V>::from(norm.mean, c);
      auto sum = Channels<T, V>::from(sum_g, c), sum_x = Channels<T, V>::from(sum_gx, c);
      for (idx r = 0; r < rows; ++r) {
        FF_UNROLL(4)
        for (int u = 0; u < V; ++u) {
          const idx at = c + u * lanes<T>;
          vec<T> g_v = load_n<T>(dz + r * dz_stride + at, n);
          __builtin_prefetch(dz + r * dz_stride + at + ahead_dz);
          if (A != Act::none || sum_g) {
            const vec<T> y_v = load_n<T>(y + r * y_stride + at, n);
            __builtin_prefetch(y + r * y_stride + at + ahead_y);
            g_v = activate_grad<A, T>(g_v, norm.scale ? fma(y_v, scale.v[u], shift.v[u]) : y_v);
            sum.v[u] = sum.v[u] + g_v;
            sum_x.v[u] = fma(g_v, y_v - mean.v[u], sum_x.v[u]);
          }
          if (g) store_or_stream<T>(g + r * g_stride + at, scaled ? g_v * scale.v[u] : g_v, n, streamed);
        }
      }
      if (sum_g) sum.to(sum_g, c), sum_x.to(sum_gx, c);
    });
  });
}

// dst = slope·g + curve·y + offset with g = dz·act'(y·scale + shift). dst may be dz.
template <class T>
FF_NOINLINE void norm_act_grad(T* dst, idx dst_stride, const T* dz, idx dz_stride, const T* y, idx y_stride, idx rows,
                               idx channels, const NormAct<T>& norm, const NormGrad<T>& grad) {
  const idx ahead_dz = prefetch_distance<T>(dz_stride), ahead_y = prefetch_distance<T>(y_stride);
  with_act(norm.act, [&](auto tag) {
    for_groups<T>(channels, [&](auto count, idx c, idx n) {
      constexpr Act A = decltype(tag)::value;
      constexpr int V = decltype(count)::value;
      const auto scale = Channels<T, V>::from(norm.scale, c), shift = Channels<T, V>::from(norm.shift, c);
      const auto slope = Channels<T, V>::from(grad.slope, c), curve = Channels<T, V>::from(grad.curve, c);
      const auto offset = Channels<T, V>::from(grad.offset, c);
      for (idx r = 0; r < rows; ++r) {
        FF_UNROLL(4)
        for (int u = 0; u < V; ++u) {
          const idx at = c + u * lanes<T>;
          const vec<T> y_v = load_n<T>(y + r * y_stride + at, n);
          vec<T> g = load_n<T>(dz + r * dz_stride + at, n);
          __builtin_prefetch(dz + r * dz_stride + at + ahead_dz);
          __builtin_prefetch(y + r * y_stride + at + ahead_y);
          if constexpr (A != Act::none) g = activate_grad<A, T>(g, fma(y_v, scale.v[u], shift.v[u]));
          store_n<T>(dst + r * dst_stride + at, fma(g, slope.v[u], fma(y_v, curve.v[u], offset.v[u])), n);
        }
      }
    });
  });
}

template <class T>
FF_NOINLINE void add(T* to, const T* x, idx n) {
  for_lanes<T>(
      n, [&](idx i, idx valid) { store_n<T>(to + i, load_n<T>(to + i, valid) + load_n<T>(x + i, valid), valid); });
}

template <class T>
FF_NOINLINE void sum_parts(T* to, const T* parts, idx count, idx stride, idx n) {
  for_lanes<T>(n, [&](idx i, idx valid) {
    vec<T> total = {};
    for (idx part = 0; part < count; ++part) total = total + load_n<T>(parts + part * stride + i, valid);
    store_n<T>(to + i, total, valid);
  });
}

template <class T>
FF_NOINLINE void fold_parts(T* values, idx count, idx stride, idx n) {
  for_lanes<T>(n, [&](idx i, idx valid) {
    vec<T> total = load_n<T>(values + i, valid);
    for (idx part = 1; part < count; ++part) total = total + load_n<T>(values + part * stride + i, valid);
    store_n<T>(values + i, total, valid);
  });
}

template <class T>
FF_NOINLINE void weighted_rows(double* out, const T* const* w, const double* rows, idx count, idx stride) {
  for_lanes<double>(count, [&](idx j, idx n) {
    vec<double> sum[4] = {};
    for (idx i = 0; i < count; ++i) {
      const vec<double> row = load_n<double>(rows + i * stride + j, n);
      FF_UNROLL(4)
      for (idx g = 0; g < 4; ++g) sum[g] = fma(splat<double>(static_cast<double>(w[g][i])), row, sum[g]);
    }
    FF_UNROLL(4)
    for (idx g = 0; g < 4; ++g) store_n<double>(out + g * stride + j, sum[g], n);
  });
}

FF_NOINLINE void fence() { stream_fence(); }

template <class T>
constexpr NormKernels<T> kKernels = {affine_act<T>, moments<T>,   sums<T>,       act_grad<T>,      norm_act_grad<T>,
                                     add<T>,        sum_parts<T>, fold_parts<T>, weighted_rows<T>, fence};

}  // namespace

const NormKernels<float> norm_f32 = kKernels<float>;
const NormKernels<double> norm_f64 = kKernels<double>;

}  // namespace FF_ISA
}  // namespace ff
