// SPDX-License-Identifier: Apache-2.0
// Depthwise tiles on NHWC: TW pixels of a row × one vector of channels in registers, channels innermost in memory, so
// that each input pixel is loaded once a kernel row and each of the kernel's rows is one linear stream.
// K×K kernels with stride S in both directions have unrolled tiles; others run the any_* forms.
#pragma once
#include "separable_conv/op.h"
#include "simd/arena.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr int kMaxKernel = 5;  // unrolled forms

// One row of tiles: `rows` are the K source rows (null: outside the image), at the column of the first pixel's tap 0.
template <class T>
struct TileRow {
  const T* rows[kMaxKernel];
  idx column;      // source column that rows point to; may be negative, then nothing before column 0 is read
  idx width;       // columns of the source
  idx channels;    // = pixel stride of the source
  const T* w;      // [K·K][w_stride]
  idx w_stride;
};

// Tile width with the fewest idle pixels. float64 has one width only: it serves gradient checks, and costs build time.
template <class T>
FF_INLINE idx pick_tile(idx width, int stride) {
  if (sizeof(T) == 8) return 6;
  idx best = 8;
  for (idx tile = 7; tile >= 6; --tile) {
    if (tile % stride != 0) continue;
    if (ceil_div(width, tile) * tile < ceil_div(width, best) * best) best = tile;
  }
  return best;
}

// Weights [C][K·K] to [K·K][stride], times scale[c].
template <class T>
FF_INLINE void pack_depthwise(T* packed, idx stride, const T* w, const T* scale, idx channels, idx taps) {
  for (idx t = 0; t < taps; ++t) {
    for (idx c = 0; c < channels; ++c) packed[t * stride + c] = scale ? w[c * taps + t] * scale[c] : w[c * taps + t];
    for (idx c = channels; c < stride; ++c) packed[t * stride + c] = T(0);
  }
}

// y[i] = clamp(bias + sum_kl x[i·S + l, row k]·w[k,l]) for i in [0, pixels).
template <class T, int K, int S, int TW, bool Edge>
FF_NOINLINE void forward_tile(const TileRow<T>& r, const T* bias, T* y, idx y_stride, idx pixels, T lo, T hi) {
  constexpr int columns = (TW - 1) * S + K;
  const vec<T> lo_v = splat<T>(lo), hi_v = splat<T>(hi);
  for_lanes<T>(r.channels, [&](idx c, idx n) {
    vec<T> acc[TW];
    const vec<T> bias_v = load(bias + c);
    FF_UNROLL(8)
    for (int i = 0; i < TW; ++i) acc[i] = bias_v;
    FF_UNROLL(5)
    for (int k = 0; k < K; ++k) {
      if (!r.rows[k]) continue;
      const T* x = r.rows[k] + c;
      vec<T> w_v[K];
      FF_UNROLL(5)
      for (int l = 0; l < K; ++l) w_v[l] = load(r.w + (k * K + l) * r.w_stride + c);
      FF_UNROLL(20)
      for (int q = 0; q < columns; ++q) {
        if (Edge && (r.column + q < 0 || r.column + q >= r.width)) continue;
        const vec<T> x_v = load_n<T>(x + q * r.channels, n);
        FF_UNROLL(5)
        for (int l = 0; l < K; ++l) {
          const int i = (q - l) / S;
          if (q >= l && (q - l) % S == 0 && i < TW) acc[i] = fma(x_v, w_v[l], acc[i]);
        }
      }
    }
    FF_UNROLL(8)
    for (int i = 0; i < TW; ++i) {
      if (!Edge || i < pixels) store_n<T>(y + i * y_stride + c, min_bound(max_bound(acc[i], lo_v), hi_v), n);
    }
  });
}

// dx[i] = sum_kl dy[(i - l)/S, row k]·w[k,l] over the l with S dividing i - l, for i in [first, last). rows point at dy
// column `column`, which feeds pixel 0 through tap 0.
template <class T, int K, int S, int TW, bool Edge, bool Stream>
FF_NOINLINE void input_grad_tile(const TileRow<T>& r, T* dx, idx first, idx last) {
  constexpr int before = (K - 1) / S, columns = before + (TW - 1) / S + 1;
  for_lanes<T>(r.channels, [&](idx c, idx n) {
    vec<T> acc[TW];
    FF_UNROLL(8)
    for (int i = 0; i < TW; ++i) acc[i] = vec<T>{};
    FF_UNROLL(5)
    for (int k = 0; k < K; ++k) {
      if (!r.rows[k]) continue;
      const T* dy = r.rows[k] + c;
      vec<T> w_v[K];
      FF_UNROLL(5)
      for (int l = 0; l < K; ++l) w_v[l] = load(r.w + (k * K + l) * r.w_stride + c);
      FF_UNROLL(16)
      for (int q = 0; q < columns; ++q) {
        const int j = q - before;
        if (Edge && (r.column + j < 0 || r.column + j >= r.width)) continue;
        const vec<T> dy_v = load_n<T>(dy + j * r.channels, n);
        FF_UNROLL(5)
        for (int l = 0; l < K; ++l) {
          const int i = S * j + l;
          if (i >= 0 && i < TW) acc[i] = fma(dy_v, w_v[l], acc[i]);
        }
      }
    }
    FF_UNROLL(8)
    for (int i = 0; i < TW; ++i) {
      if (Edge && (i < first || i >= last)) continue;
      T* at = dx + i * r.channels + c;
      if (Stream && n == lanes<T>)
        stream(at, acc[i]);
      else
        store_n<T>(at, acc[i], n);
    }
  });
}

// dw[k,l] += sum_i dy[i]·x[i·S + l, row k] for i in [0, pixels); dw [K·K][w_stride] is r.w.
template <class T, int K, int S, int TW, bool Edge>
FF_NOINLINE void weight_grad_tile(const TileRow<T>& r, T* dw, const T* dy, idx pixels) {
  constexpr int columns = (TW - 1) * S + K;
  for_lanes<T>(r.channels, [&](idx c, idx n) {
    vec<T> dy_v[TW];
    FF_UNROLL(8)
    for (int i = 0; i < TW; ++i)
      dy_v[i] = !Edge || i < pixels ? load_n<T>(dy + i * r.channels + c, n) : vec<T>{};
    FF_UNROLL(5)
    for (int k = 0; k < K; ++k) {
      if (!r.rows[k]) continue;
      const T* x = r.rows[k] + c;
      vec<T> dw_v[K];
      FF_UNROLL(5)
      for (int l = 0; l < K; ++l) dw_v[l] = load(dw + (k * K + l) * r.w_stride + c);
      FF_UNROLL(20)
      for (int q = 0; q < columns; ++q) {
        if (Edge && (r.column + q < 0 || r.column + q >= r.width)) continue;
        if (Edge && (q - (K - 1)) / S >= pixels) continue;
        const vec<T> x_v = load_n<T>(x + q * r.channels, n);
        FF_UNROLL(5)
        for (int l = 0; l < K; ++l) {
          const int i = (q - l) / S;
          if (q >= l && (q - l) % S == 0 && i < TW) {
            if (!Edge || i < pixels) dw_v[l] = fma(x_v, dy_v[i], dw_v[l]);
          }
        }
      }
      FF_UNROLL(5)
      for (int l = 0; l < K; ++l) store(dw + (k * K + l) * r.w_stride + c, dw_v[l]);
    }
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
