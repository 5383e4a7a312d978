// SPDX-License-Identifier: Apache-2.0
// The k×k convolution of planes of one value a pixel, its two gradients, and the norm over the plane; vectorised along
// x.
#pragma once
#include "pool/best.h"
#include "norm/stats.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr int kPlaneRows = 4;  // output rows at a time

// A plane h×w inside a border of zeros: k/2 on each side, more where whole vectors and row groups read on.
struct Border {
  idx h, w, k, stride, rows;
};
template <class T>
FF_INLINE Border border(idx h, idx w, idx k) {
  return {h, w, k, round_up_lanes<T>(w) + k - 1, ceil_div(h, kPlaneRows) * kPlaneRows + k - 1};
}

template <class T>
FF_INLINE T* inside(const Border& b, T* padded) {
  return padded + b.k / 2 * b.stride + b.k / 2;
}

// Fills the inside of a zeroed plane.
template <class T>
FF_INLINE void enclose(const Border& b, const T* plane, T* padded) {
  for (idx y = 0; y < b.h; ++y) {
    T* row = inside(b, padded) + y * b.stride;
    for_lanes<T>(b.w, [&](idx x, idx n) { store_n<T>(row + x, load_n<T>(plane + y * b.w + x, n), n); });
  }
}

// A convolution of V vectors in kPlaneRows rows; step 1: weights in order, -1: from the last, for the gradient.
template <class T, int V>
FF_INLINE void correlate_tile(const Border& b, const T* padded, const T* weight, int step, bool add, idx y0, idx x0,
                              T* out) {
  constexpr idx L = lanes<T>;
  vec<T> acc[kPlaneRows][V] = {};
  const T* w = step > 0 ? weight : weight + b.k * b.k - 1;
  for (idx i = 0; i < b.k; ++i) {
    const T* row = padded + (y0 + i) * b.stride + x0;
    for (idx j = 0; j < b.k; ++j, w += step, ++row) {
      const vec<T> w_v = splat<T>(*w);
      FF_UNROLL(4)
      for (int r = 0; r < kPlaneRows; ++r) {
        FF_UNROLL(4)
        for (int v = 0; v < V; ++v) acc[r][v] = fma(load(row + r * b.stride + v * L), w_v, acc[r][v]);
      }
    }
  }
  FF_UNROLL(4)
  for (int r = 0; r < kPlaneRows; ++r) {
    FF_UNROLL(4)
    for (int v = 0; v < V; ++v) {
      const idx x = x0 + v * L, n = min_idx(L, b.w - x);
      if (y0 + r >= b.h || n <= 0) continue;
      T* at = out + (y0 + r) * b.w + x;
      store_n<T>(at, add ? load_n<T>(at, n) + acc[r][v] : acc[r][v], n);
    }
  }
}

// out[y,x] (+)= sum_ij padded[y + i, x + j]·weight[i,j].
template <class T>
FF_NOINLINE void correlate(const Border& b, const T* padded, const T* weight, int step, bool add, T* out) {
  constexpr int kMost = kRegisters == 32 ? 3 : 2;
  for (idx y = 0; y < b.h; y += kPlaneRows) {
    idx x = 0;
    for (; x + (kMost - 1) * lanes<T> < b.w; x += kMost * lanes<T>)
      correlate_tile<T, kMost>(b, padded, weight, step, add, y, x, out);
    for (; x < b.w; x += lanes<T>) correlate_tile<T, 1>(b, padded, weight, step, add, y, x, out);
  }
}

// sums[p·step + j] = plane p·dy shifted by tap (i, j), for J taps of row i that start at j0; lanes are not yet added.
template <class T, int J>
FF_INLINE void weight_taps(const Border& b, const T* const (&planes)[2], const T* dy, idx i, idx j0, vec<T>* sums,
                           idx step) {
  vec<T> acc[2][J] = {};
  for (idx y = 0; y < b.h; ++y) {
    const T* row = dy + (y + b.k - 1 - i) * b.stride + b.k - 1 - j0;
    for_lanes<T>(b.w, [&](idx x, idx n) {
      const vec<T> first = load_n<T>(planes[0] + y * b.w + x, n), second = load_n<T>(planes[1] + y * b.w + x, n);
      FF_UNROLL(8)
      for (int j = 0; j < J; ++j) {
        const vec<T> grad = in_register<T>(load(row + x - j));
        acc[0][j] = fma(first, grad, acc[0][j]), acc[1][j] = fma(second, grad, acc[1][j]);
      }
    });
  }
  FF_UNROLL(8)
  for (int j = 0; j < J; ++j) sums[j] = acc[0][j], sums[step + j] = acc[1][j];
}

// Adds sum_yx dy[y,x]·plane[y + i, x + j] to d_weight[plane,i,j]; dy is enclosed in zeros. Both planes at once: loads
// of dy across cache lines are the limit.
template <class T>
FF_NOINLINE void weight_grad(const Border& b, const T* const (&planes)[2], const T* dy, double* d_weight) {
  constexpr idx L = lanes<T>;
  constexpr int kTaps = kRegisters == 32 && L >= 7 ? 7 : L >= 3 ? 3 : 1;
  vec<T> sums[2][2 * L] = {};
  idx filled = 0, done = 0;
  const auto flush = [&](idx n) {
    for (int plane = 0; plane < 2; ++plane) {
      vec<T>* v = sums[plane];
      T totals[L];
      store(totals, reduce_lanes<T>(v));
      for (idx i = 0; i < n; ++i) d_weight[plane * b.k * b.k + done + i] += static_cast<double>(totals[i]);
      for (idx i = 0; i < L; ++i) v[i] = v[L + i], v[L + i] = vec<T>{};
    }
    done += n, filled -= n;
  };
  for (idx i = 0; i < b.k; ++i) {
    for (idx j = 0; j < b.k;) {
      const idx taps = b.k - j >= kTaps ? kTaps : 1;
      if (taps == kTaps)
        weight_taps<T, kTaps>(b, planes, dy, i, j, sums[0] + filled, 2 * L);
      else
        weight_taps<T, 1>(b, planes, dy, i, j, sums[0] + filled, 2 * L);
      j += taps, filled += taps;
      while (filled >= L) flush(L);
    }
  }
  if (filled) flush(filled);
}

// Mean and sum of squared deviations of a plane, from its first value as origin.
template <class T>
FF_NOINLINE void plane_moments(const T* y, idx count, T* mean, T* m2) {
  const vec<T> origin = splat<T>(y[0]);
  vec<T> sum = {}, squares = {};
  for_lanes<T>(count, [&](idx i, idx n) {
    const vec<T> d = n == lanes<T> ? load(y + i) - origin
                                   : load(y + i, n) - (lane_numbers<T>() < splat_index<T>(n) ? origin : vec<T>{});
    sum = sum + d, squares = fma(d, d, squares);
  });
  double s = 0, q = 0;
  for (idx i = 0; i < lanes<T>; ++i) s += static_cast<double>(sum[i]), q += static_cast<double>(squares[i]);
  const double rows = static_cast<double>(count), deviation = q - s * s / rows;
  *mean = static_cast<T>(static_cast<double>(y[0]) + s / rows);
  *m2 = static_cast<T>(deviation < 0 ? 0 : deviation);
}

// s = sigmoid(y·scale + shift).
template <class T>
FF_NOINLINE void plane_gate(const T* y, idx count, T scale, T shift, T* s) {
  for_lanes<T>(count, [&](idx i, idx n) {
    store_n<T>(s + i, logistic<T>(fma(load_n<T>(y + i, n), splat<T>(scale), splat<T>(shift))), n);
  });
}

// t *= s·(1 - s); adds the sums of t and t·(y - mean).
template <class T>
FF_NOINLINE void plane_gate_grad(const T* y, const T* s, idx count, T mean, T* t, double* sum_t, double* sum_ty) {
  vec<T> sum = {}, sum_y = {};
  for_lanes<T>(count, [&](idx i, idx n) {
    const vec<T> gate = load_n<T>(s + i, n), g = load_n<T>(t + i, n) * gate * (splat<T>(1) - gate);
    store_n<T>(t + i, g, n);
    sum = sum + g, sum_y = fma(g, load_n<T>(y + i, n) - splat<T>(mean), sum_y);
  });
  for (idx i = 0; i < lanes<T>; ++i) *sum_t += static_cast<double>(sum[i]), *sum_ty += static_cast<double>(sum_y[i]);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
