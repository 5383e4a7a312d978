// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution by rows of the image: the tiles of depthwise.h along a row, and forms for any kernel and stride.
#pragma once
#include "separable_conv/depthwise.h"

namespace ff {
namespace FF_ISA {
namespace {

// Output row oy of image x [h][w][c] into y [ow][y_stride].
template <class T>
using ForwardRow = void (*)(const DepthwiseShape& s, const T* x, idx oy, const T* w, const T* bias, T* y,
                            idx y_stride, T lo, T hi);
// Row y of dx [w][c] from dy, whose row oy stands at dy + oy·ow·c (rows outside [oy_first, oy_end) count as zero).
template <class T>
using InputGradRow = void (*)(const DepthwiseShape& s, const T* dy, idx oy_first, idx oy_end, idx y, const T* w, T* dx, bool stream);
// Adds to dw (packed as the weights) what row oy of dy ([ow][c]) contributes.
template <class T>
using WeightGradRow = void (*)(const DepthwiseShape& s, const T* x, const T* dy_row, idx oy, T* dw);

template <class T>
struct RowKernels {
  ForwardRow<T> forward;
  InputGradRow<T> input_grad;
  WeightGradRow<T> weight_grad;
};

template <class T, int K, int S, int TW>
FF_NOINLINE void forward_row(const DepthwiseShape& s, const T* x, idx oy, const T* w, const T* bias, T* y,
                             idx y_stride, T lo, T hi) {
  TileRow<T> r{{}, 0, s.w, s.c, w, S * s.w * s.c};
  for (idx ox = 0; ox < s.ow; ox += TW) {
    r.column = ox * S - s.left;
    for (int k = 0; k < K; ++k) {
      const idx iy = oy * S - s.top + k;
      r.rows[k] = iy >= 0 && iy < s.h ? x + (iy * s.w + r.column) * s.c : nullptr;
    }
    const idx pixels = min_idx(TW, s.ow - ox);
    if (pixels < TW || r.column < 0 || r.column + (TW - 1) * S + K > s.w)
      forward_tile<T, K, S, TW, true>(r, bias, y + ox * y_stride, y_stride, pixels, lo, hi);
    else
      forward_tile<T, K, S, TW, false>(r, bias, y + ox * y_stride, y_stride, pixels, lo, hi);
  }
}

template <class T, int K, int S, int TW>
FF_NOINLINE void input_grad_row(const DepthwiseShape& s, const T* dy, idx oy_first, idx oy_end, idx y, const T* w, T* dx, bool streamed) {
  constexpr int before = (K - 1) / S;
  TileRow<T> r{{}, 0, s.ow, s.c, w, s.ow * s.c};
  for (idx x0 = -(s.left % S); x0 < s.w; x0 += TW) {
    r.column = (x0 + s.left) / S;
    for (int k = 0; k < K; ++k) {
      const idx scaled = y + s.top - k, oy = scaled / S;
      const bool used = scaled >= 0 && scaled % S == 0 && oy >= oy_first && oy < oy_end;
      r.rows[k] = used ? dy + (oy * s.ow + r.column) * s.c : nullptr;
    }
    const idx first = max_idx(0, -x0), last = min_idx(TW, s.w - x0);
    if (first > 0 || last < TW || r.column < before || r.column + (TW - 1) / S >= s.ow)
      input_grad_tile<T, K, S, TW, true, false>(r, dx + x0 * s.c, first, last);
    else if (streamed)
      input_grad_tile<T, K, S, TW, false, true>(r, dx + x0 * s.c, first, last);
    else
      input_grad_tile<T, K, S, TW, false, false>(r, dx + x0 * s.c, first, last);
  }
}

template <class T, int K, int S, int TW>
FF_NOINLINE void weight_grad_row(const DepthwiseShape& s, const T* x, const T* dy_row, idx oy, T* dw) {
  TileRow<T> r{{}, 0, s.w, s.c, dw, S * s.w * s.c};
  for (idx ox = 0; ox < s.ow; ox += TW) {
    r.column = ox * S - s.left;
    for (int k = 0; k < K; ++k) {
      const idx iy = oy * S - s.top + k;
      r.rows[k] = iy >= 0 && iy < s.h ? x + (iy * s.w + r.column) * s.c : nullptr;
    }
    const idx pixels = min_idx(TW, s.ow - ox);
    if (pixels < TW)
      weight_grad_tile<T, K, S, TW, true, true>(r, dw, dy_row + ox * s.c, pixels);
    else if (r.column < 0 || r.column + (TW - 1) * S + K > s.w)
      weight_grad_tile<T, K, S, TW, true, false>(r, dw, dy_row + ox * s.c, pixels);
    else
      weight_grad_tile<T, K, S, TW, false, false>(r, dw, dy_row + ox * s.c, pixels);
  }
}

constexpr int kAnyTile = 4;

template <class T>
FF_NOINLINE void any_forward_row(const DepthwiseShape& s, const T* x, idx oy, const T* w, const T* bias,
                                 T* y, idx y_stride, T lo, T hi) {
  for (idx ox = 0; ox < s.ow; ox += kAnyTile) {
    for_lanes<T>(s.c, [&](idx c, idx n) {
      vec<T> acc[kAnyTile];
      FF_UNROLL(4)
      for (int i = 0; i < kAnyTile; ++i) acc[i] = load(bias + c);
      for (int k = 0; k < s.kh; ++k) {
        const idx iy = oy * s.sh - s.top + k;
        if (iy < 0 || iy >= s.h) continue;
        for (int l = 0; l < s.kw; ++l) {
          const vec<T> w_v = load(w + packed_tap<T>(c, k * s.kw + l, s.kh * s.kw));
          FF_UNROLL(4)
          for (int i = 0; i < kAnyTile; ++i) {
            const idx ix = (ox + i) * s.sw - s.left + l;
            if (ix >= 0 && ix < s.w) acc[i] = fma(load_n<T>(x + (iy * s.w + ix) * s.c + c, n), w_v, acc[i]);
          }
        }
      }
      FF_UNROLL(4)
      for (int i = 0; i < kAnyTile; ++i)
        if (ox + i < s.ow)
          store_n<T>(y + (ox + i) * y_stride + c, min_bound(max_bound(acc[i], splat<T>(lo)), splat<T>(hi)), n);
    });
  }
}

template <class T>
FF_NOINLINE void any_input_grad_row(const DepthwiseShape& s, const T* dy, idx oy_first, idx oy_end, idx y, const T* w, T* dx, bool) {
  for (idx ix = 0; ix < s.w; ++ix) {
    for_lanes<T>(s.c, [&](idx c, idx n) {
      vec<T> acc = {};
      for (int k = 0; k < s.kh; ++k) {
        const idx up = y + s.top - k, oy = up / s.sh;
        if (up < 0 || up % s.sh != 0 || oy < oy_first || oy >= oy_end) continue;
        for (int l = 0; l < s.kw; ++l) {
          const idx across = ix + s.left - l, ox = across / s.sw;
          if (across < 0 || across % s.sw != 0 || ox >= s.ow) continue;
          acc = fma(load_n<T>(dy + (oy * s.ow + ox) * s.c + c, n), load(w + packed_tap<T>(c, k * s.kw + l, s.kh * s.kw)), acc);
        }
      }
      store_n<T>(dx + ix * s.c + c, acc, n);
    });
  }
}

template <class T>
FF_NOINLINE void any_weight_grad_row(const DepthwiseShape& s, const T* x, const T* dy_row, idx oy, T* dw) {
  for (int k = 0; k < s.kh; ++k) {
    const idx iy = oy * s.sh - s.top + k;
    if (iy < 0 || iy >= s.h) continue;
    for (int l = 0; l < s.kw; ++l) {
      for_lanes<T>(s.c, [&](idx c, idx n) {
        T* at = dw + packed_tap<T>(c, k * s.kw + l, s.kh * s.kw);
        vec<T> acc = load(at);
        for (idx ox = 0; ox < s.ow; ++ox) {
          const idx ix = ox * s.sw - s.left + l;
          if (ix >= 0 && ix < s.w)
            acc = fma(load_n<T>(x + (iy * s.w + ix) * s.c + c, n), load_n<T>(dy_row + ox * s.c + c, n), acc);
        }
        store(at, acc);
      });
    }
  }
}

template <class T, int K, int S, int TW>
FF_INLINE void offer_forward(int tile, RowKernels<T>& kernels) {
  if constexpr (TW != 0) {
    if (tile == TW) kernels.forward = forward_row<T, K, S, TW>, kernels.weight_grad = weight_grad_row<T, K, S, TW>;
  }
}

template <class T, int K, int S, int TW>
FF_INLINE void offer_input_grad(int tile, RowKernels<T>& kernels) {
  if constexpr (TW != 0) {
    if (tile == TW) kernels.input_grad = input_grad_row<T, K, S, TW>;
  }
}

template <class T, int K, int S>
FF_INLINE void pick_tiles(const DepthwiseShape& s, RowKernels<T>& kernels) {
  using Widths = TileWidths<T, K, S>;
  const int out = pick_tile(Widths::forward, s.ow), in = pick_tile(Widths::input_grad, s.w + s.left % S);
  offer_forward<T, K, S, Widths::forward[0]>(out, kernels);
  offer_forward<T, K, S, Widths::forward[1]>(out, kernels);
  offer_forward<T, K, S, Widths::forward[2]>(out, kernels);
  offer_input_grad<T, K, S, Widths::input_grad[0]>(in, kernels);
  offer_input_grad<T, K, S, Widths::input_grad[1]>(in, kernels);
  offer_input_grad<T, K, S, Widths::input_grad[2]>(in, kernels);
}

template <class T>
FF_INLINE RowKernels<T> row_kernels(const DepthwiseShape& s) {
  RowKernels<T> kernels{any_forward_row<T>, any_input_grad_row<T>, any_weight_grad_row<T>};
  if (s.kh == s.kw && s.sh == s.sw) {
    if (s.kh == 3 && s.sh == 1) pick_tiles<T, 3, 1>(s, kernels);
    if (s.kh == 3 && s.sh == 2) pick_tiles<T, 3, 2>(s, kernels);
    if (s.kh == 5 && s.sh == 1) pick_tiles<T, 5, 1>(s, kernels);
    if (s.kh == 5 && s.sh == 2) pick_tiles<T, 5, 2>(s, kernels);
    if (s.kh == 4 && s.sh == 4) pick_tiles<T, 4, 4>(s, kernels);
    if (s.kh == 2 && s.sh == 2) pick_tiles<T, 2, 2>(s, kernels);
  }
  return kernels;
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
