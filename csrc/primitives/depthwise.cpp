// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution by rows of the image: the tiles of depthwise_tiles.h along a row, and forms for any kernel and
// stride.
#include "primitives/depthwise_tiles.h"

namespace ff {
namespace FF_ISA {
namespace {

// Place of tap t of channel c in packed weights [C / lanes][taps][lanes]: a vector's taps are neighbours.
template <class T>
FF_INLINE idx packed_tap(idx c, idx t, idx taps) {
  constexpr idx L = lanes<T>;
  return (c / L * taps + t) * L + c % L;
}

// Packs weights [C][taps], times scale[c]; zeros up to a whole vector.
template <class T>
FF_NOINLINE void pack(T* packed, const T* w, const T* scale, idx channels, idx taps) {
  for (idx c = 0; c < round_up_lanes<T>(channels); ++c) {
    const T factor = scale && c < channels ? scale[c] : T(1);
    for (idx t = 0; t < taps; ++t) packed[packed_tap<T>(c, t, taps)] = c < channels ? w[c * taps + t] * factor : T(0);
  }
}

template <class T>
FF_NOINLINE void unpack(T* w, const T* packed, idx channels, idx taps) {
  for (idx c = 0; c < channels; ++c)
    for (idx t = 0; t < taps; ++t) w[c * taps + t] = packed[packed_tap<T>(c, t, taps)];
}

template <class T, int K, int S, int TW>
FF_NOINLINE void forward_row(const DepthwiseShape& s, const T* x, idx oy, const T* w, const T* bias, T* y, idx y_stride,
                             T lo, T hi) {
  const bool rest = s.c % lanes<T>;
  TileRow<T> r{{}, 0, s.w, s.c, w, S * s.w * s.c};
  for (idx ox = 0; ox < s.ow; ox += TW) {
    r.column = ox * S - s.left;
    for (int k = 0; k < K; ++k) {
      const idx iy = oy * S - s.top + k;
      r.rows[k] = iy >= 0 && iy < s.h ? x + (iy * s.w + r.column) * s.c : nullptr;
    }
    const idx pixels = min_idx(TW, s.ow - ox);
    const bool edge = pixels < TW || r.column < 0 || r.column + (TW - 1) * S + K > s.w;
    T* to = y + ox * y_stride;
    if (edge)
      forward_apart<T, K, S, TW, true, Part::whole>(r, bias, to, y_stride, pixels, lo, hi);
    else
      forward_tile<T, K, S, TW, false, Part::whole>(r, bias, to, y_stride, pixels, lo, hi);
    if (rest && edge)
      forward_apart<T, K, S, TW, true, Part::rest>(r, bias, to, y_stride, pixels, lo, hi);
    else if (rest)
      forward_apart<T, K, S, TW, false, Part::rest>(r, bias, to, y_stride, pixels, lo, hi);
  }
}

template <class T, int K, int S, int TW>
FF_NOINLINE void input_grad_row(const DepthwiseShape& s, const T* dy, idx oy_first, idx oy_end, idx y, const T* w,
                                T* dx, bool streamed) {
  constexpr int before = (K - 1) / S;
  const bool rest = s.c % lanes<T>;
  TileRow<T> r{{}, 0, s.ow, s.c, w, s.ow * s.c};
  for (idx x0 = -(s.left % S); x0 < s.w; x0 += TW) {
    r.column = (x0 + s.left) / S;
    for (int k = 0; k < K; ++k) {
      const idx scaled = y + s.top - k, oy = scaled / S;
      const bool used = scaled >= 0 && scaled % S == 0 && oy >= oy_first && oy < oy_end;
      r.rows[k] = used ? dy + (oy * s.ow + r.column) * s.c : nullptr;
    }
    const idx first = max_idx(0, -x0), last = min_idx(TW, s.w - x0);
    const bool edge = first > 0 || last < TW || r.column < before || r.column + (TW - 1) / S >= s.ow;
    T* to = dx + x0 * s.c;
    if (edge)
      input_grad_apart<T, K, S, TW, true, Part::whole>(r, to, first, last, false);
    else
      input_grad_tile<T, K, S, TW, false, Part::whole>(r, to, first, last, streamed);
    if (rest && edge)
      input_grad_apart<T, K, S, TW, true, Part::rest>(r, to, first, last, false);
    else if (rest)
      input_grad_apart<T, K, S, TW, false, Part::rest>(r, to, first, last, false);
  }
}

template <class T, int K, int S, int TW>
FF_NOINLINE void weight_grad_row(const DepthwiseShape& s, const T* x, const T* dy_row, idx oy, T* dw) {
  const bool rest = s.c % lanes<T>;
  TileRow<T> r{{}, 0, s.w, s.c, dw, S * s.w * s.c};
  for (idx ox = 0; ox < s.ow; ox += TW) {
    r.column = ox * S - s.left;
    for (int k = 0; k < K; ++k) {
      const idx iy = oy * S - s.top + k;
      r.rows[k] = iy >= 0 && iy < s.h ? x + (iy * s.w + r.column) * s.c : nullptr;
    }
    const idx pixels = min_idx(TW, s.ow - ox);
    const T* dy = dy_row + ox * s.c;
    if (pixels < TW) {
      weight_grad_apart<T, K, S, TW, true, true, Part::whole>(r, dw, dy, pixels);
      if (rest) weight_grad_apart<T, K, S, TW, true, true, Part::rest>(r, dw, dy, pixels);
    } else if (r.column < 0 || r.column + (TW - 1) * S + K > s.w) {
      weight_grad_apart<T, K, S, TW, true, false, Part::whole>(r, dw, dy, pixels);
      if (rest) weight_grad_apart<T, K, S, TW, true, false, Part::rest>(r, dw, dy, pixels);
    } else {
      weight_grad_tile<T, K, S, TW, false, false, Part::whole>(r, dw, dy, pixels);
      if (rest) weight_grad_apart<T, K, S, TW, false, false, Part::rest>(r, dw, dy, pixels);
    }
  }
}

constexpr int kAnyTile = 4;

template <class T>
FF_NOINLINE void any_forward_row(const DepthwiseShape& s, const T* x, idx oy, const T* w, const T* bias, T* y,
                                 idx y_stride, T lo, T hi) {
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
FF_NOINLINE void any_input_grad_row(const DepthwiseShape& s, const T* dy, idx oy_first, idx oy_end, idx y, const T* w,
                                    T* dx, bool) {
  for (idx ix = 0; ix < s.w; ++ix) {
    for_lanes<T>(s.c, [&](idx c, idx n) {
      vec<T> acc = {};
      for (int k = 0; k < s.kh; ++k) {
        const idx up = y + s.top - k, oy = up / s.sh;
        if (up < 0 || up % s.sh != 0 || oy < oy_first || oy >= oy_end) continue;
        for (int i = 0; i < s.kw; ++i) {
          // float64, which has no tiles, adds up in their order, from the last tap to the first.
          const int l = sizeof(T) == sizeof(double) ? s.kw - 1 - i : i;
          const idx across = ix + s.left - l, ox = across / s.sw;
          if (across < 0 || across % s.sw != 0 || ox >= s.ow) continue;
          acc = fma(load_n<T>(dy + (oy * s.ow + ox) * s.c + c, n),
                    load(w + packed_tap<T>(c, k * s.kw + l, s.kh * s.kw)), acc);
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
  using Widths = TileWidths<K, S>;
  const int out = pick_tile(Widths::forward, s.ow), in = pick_tile(Widths::input_grad, s.w + s.left % S);
  offer_forward<T, K, S, Widths::forward[0]>(out, kernels);
  offer_forward<T, K, S, Widths::forward[1]>(out, kernels);
  offer_forward<T, K, S, Widths::forward[2]>(out, kernels);
  offer_input_grad<T, K, S, Widths::input_grad[0]>(in, kernels);
  offer_input_grad<T, K, S, Widths::input_grad[1]>(in, kernels);
  offer_input_grad<T, K, S, Widths::input_grad[2]>(in, kernels);
}

template <class T>
FF_NOINLINE RowKernels<T> choose(const DepthwiseShape& s) {
  RowKernels<T> kernels{any_forward_row<T>, any_input_grad_row<T>, any_weight_grad_row<T>};
  // float64 serves gradient checks: its tiles would cost a third of the time that depthwise convolutions take to build.
  if constexpr (sizeof(T) == sizeof(float)) {
    if (s.kh != s.kw || s.sh != s.sw) return kernels;
    if (s.kh == 3 && s.sh == 1) pick_tiles<T, 3, 1>(s, kernels);
    if (s.kh == 3 && s.sh == 2) pick_tiles<T, 3, 2>(s, kernels);
    if (s.kh == 5 && s.sh == 1) pick_tiles<T, 5, 1>(s, kernels);
    if (s.kh == 5 && s.sh == 2) pick_tiles<T, 5, 2>(s, kernels);
    if (s.kh == 4 && s.sh == 4) pick_tiles<T, 4, 4>(s, kernels);
    if (s.kh == 2 && s.sh == 2) pick_tiles<T, 2, 2>(s, kernels);
  }
  return kernels;
}

template <class T>
constexpr DepthwiseKernels<T> kKernels = {choose<T>, pack<T>, unpack<T>};

}  // namespace

const DepthwiseKernels<float> depthwise_f32 = kKernels<float>;
const DepthwiseKernels<double> depthwise_f64 = kKernels<double>;

}  // namespace FF_ISA
}  // namespace ff
