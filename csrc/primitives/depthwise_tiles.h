// SPDX-License-Identifier: Apache-2.0
// Depthwise tiles on NHWC: TW pixels of a row × one vector of channels in registers, channels innermost in memory, so
// that each input pixel is loaded once a kernel row and each of the kernel's rows is one linear stream.
// K×K kernels with stride S in both directions have unrolled tiles; others run the any_* forms.
#pragma once
#include "primitives/local.h"

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
  const T* w;      // packed, see pack_depthwise
  idx ahead;       // elements from the last kernel row to the next new row of the source, which is fetched
};

// Bit q is set when source column r.column + q is inside the image: one test a column in the unrolled loops.
template <class T>
FF_INLINE uint32_t columns_inside(const TileRow<T>& r, idx shift, int columns) {
  const idx first = max_idx(0, -(r.column + shift)), end = min_idx(columns, r.width - (r.column + shift));
  return end <= first ? 0u : ((1u << end) - 1u) & ~((1u << first) - 1u);
}

// Unrolled tile widths, widest first, 0 for none: those that divide the images of the five networks (56, 28, 14, 7 and
// 24, 12, 6 at stride 2, multiples of 7 with 5×5, 4 and 2 where the stride is the kernel). The gradient of the input
// needs a multiple of the stride. One width serves CPUs of 16-byte vectors and 16 registers: the code of the others
// costs more to build than it gains there.
template <int K, int S>
struct TileWidths {
  static constexpr bool all = FF_VEC_BYTES > 16 || kRegisters > 16;
  static constexpr int forward[3] = {all && K == 3 && S == 1 ? 8 : 0, all || K == 5 ? 7 : 0, K == 5 ? 0 : 6};
  static constexpr int input_grad[3] = {(all && K == 3) || (S == 2 && (all || K == 5)) ? 8 : 0,
                                        S == 1 && (all || K == 5) ? 7 : 0, K == 5 || (all && S == 2) ? 0 : 6};
};
template <>
struct TileWidths<4, 4> {
  static constexpr int forward[3] = {4, 0, 0}, input_grad[3] = {8, 0, 0};
};
template <>
struct TileWidths<2, 2> {
  static constexpr int forward[3] = {4, 2, 0}, input_grad[3] = {4, 0, 0};
};

// The width with the fewest idle pixels.
FF_INLINE int pick_tile(const int (&widths)[3], idx pixels) {
  int best = 0;
  for (int i = 0; i < 3; ++i) {
    const int width = widths[i];
    if (width && (!best || ceil_div(pixels, width) * width < ceil_div(pixels, best) * best)) best = width;
  }
  return best;
}

// Runs body(c, n) for the whole vectors of the channels, or for what is left of the last one. Functions of one part
// each compile in half the time of one for both.
enum class Part { whole, rest };

template <class T, Part P, class Body>
FF_INLINE void for_part(idx channels, const Body& body) {
  const idx whole = channels / lanes<T> * lanes<T>;
  if constexpr (P == Part::whole)
    for (idx c = 0; c < whole; c += lanes<T>) body(c, lanes<T>);
  else
    body(whole, channels - whole);
}

// y[i] = clamp(bias + sum_kl x[i·S + l, row k]·w[k,l]) for i in [0, pixels).
template <class T, int K, int S, int TW, bool Edge, Part P>
FF_INLINE void forward_tile(const TileRow<T>& r, const T* bias, T* y, idx y_stride, idx pixels, T lo, T hi) {
  constexpr int columns = (TW - 1) * S + K;
  const vec<T> lo_v = splat<T>(lo), hi_v = splat<T>(hi);
  const uint32_t inside = columns_inside(r, 0, columns), wanted = (1u << pixels) - 1u;
  const idx pixel = r.channels, ahead = r.ahead;
  const T* const w = r.w;
  const T* rows[K];
  for (int k = 0; k < K; ++k) rows[k] = r.rows[k];
  for_part<T, P>(r.channels, [=](idx c, idx n) {
    vec<T> acc[TW];
    const vec<T> bias_v = load(bias + c);
    FF_UNROLL(8)
    for (int i = 0; i < TW; ++i) acc[i] = bias_v;
    FF_UNROLL(5)
    for (int k = 0; k < K; ++k) {
      if (!rows[k]) continue;
      const T* x = rows[k] + c;
      vec<T> w_v[K];
      FF_UNROLL(5)
      for (int l = 0; l < K; ++l) w_v[l] = in_register<T>(load(w + c * (K * K) + (k * K + l) * lanes<T>));
      FF_UNROLL(20)
      for (int q = 0; q < columns; ++q) {
        const T* at = x;
        x = stepped(x + pixel);
        if (Edge && !(inside >> q & 1u)) continue;
        const vec<T> x_v = in_register<T>(load_n<T>(at, n));
        if (k >= K - S && q < TW * S) __builtin_prefetch(at + ahead, 0, 2);
        FF_UNROLL(5)
        for (int l = 0; l < K; ++l) {
          const int i = (q - l) / S;
          if (q >= l && (q - l) % S == 0 && i < TW) acc[i] = fma(x_v, w_v[l], acc[i]);
        }
      }
    }
    FF_UNROLL(8)
    for (int i = 0; i < TW; ++i) {
      if (!Edge || (wanted >> i & 1u)) store_n<T>(y + i * y_stride + c, min_bound(max_bound(acc[i], lo_v), hi_v), n);
    }
  });
}

// dx[i] = sum_kl dy[(i - l)/S, row k]·w[k,l] over the l with S dividing i - l, for i in [first, last). rows point at dy
// column `column`, which feeds pixel 0 through tap 0.
template <class T, int K, int S, int TW, bool Edge, Part P>
FF_INLINE void input_grad_tile(const TileRow<T>& r, T* dx, idx first, idx last, bool streamed) {
  constexpr int before = (K - 1) / S, columns = before + (TW - 1) / S + 1;
  const uint32_t inside = columns_inside(r, -before, columns), wanted = ((1u << last) - 1u) & ~((1u << first) - 1u);
  const idx pixel = r.channels, ahead = r.ahead;
  const T* const w = r.w;
  const T* rows[K];
  for (int k = 0; k < K; ++k) rows[k] = r.rows[k];
  for_part<T, P>(r.channels, [=](idx c, idx n) {
    vec<T> acc[TW];
    FF_UNROLL(8)
    for (int i = 0; i < TW; ++i) acc[i] = vec<T>{};
    FF_UNROLL(5)
    for (int k = 0; k < K; ++k) {
      if (!rows[k]) continue;
      const T* dy = rows[k] + c - before * pixel;
      vec<T> w_v[K];
      FF_UNROLL(5)
      for (int l = 0; l < K; ++l) w_v[l] = in_register<T>(load(w + c * (K * K) + (k * K + l) * lanes<T>));
      FF_UNROLL(16)
      for (int q = 0; q < columns; ++q) {
        const int j = q - before;
        const T* at = dy;
        dy = stepped(dy + pixel);
        if (Edge && !(inside >> q & 1u)) continue;
        const vec<T> dy_v = in_register<T>(load_n<T>(at, n));
        if (k == 0 && j >= 0 && j < (TW + S - 1) / S) __builtin_prefetch(at + ahead, 0, 2);
        FF_UNROLL(5)
        for (int l = 0; l < K; ++l) {
          const int i = S * j + l;
          if (i >= 0 && i < TW) acc[i] = fma(dy_v, w_v[l], acc[i]);
        }
      }
    }
    FF_UNROLL(8)
    for (int i = 0; i < TW; ++i) {
      if (Edge && !(wanted >> i & 1u)) continue;
      T* at = dx + i * pixel + c;
      if (!Edge && streamed && n == lanes<T>)
        stream(at, acc[i]);
      else
        store_n<T>(at, acc[i], n);
    }
  });
}

// dw[k,l] += sum_i dy[i]·x[i·S + l, row k] for i in [0, pixels); dw is packed as the weights.
// Edge: some columns are outside; Partial: some pixels are.
template <class T, int K, int S, int TW, bool Edge, bool Partial, Part P>
FF_INLINE void weight_grad_tile(const TileRow<T>& r, T* dw, const T* dy, idx pixels) {
  constexpr int columns = (TW - 1) * S + K;
  const uint32_t inside = columns_inside(r, 0, columns), wanted = (1u << pixels) - 1u;
  const idx pixel = r.channels, ahead = r.ahead;
  const T* rows[K];
  for (int k = 0; k < K; ++k) rows[k] = r.rows[k];
  for_part<T, P>(r.channels, [=](idx c, idx n) {
    vec<T> dy_v[TW];
    FF_UNROLL(8)
    for (int i = 0; i < TW; ++i) dy_v[i] = !Partial || (wanted >> i & 1u) ? load_n<T>(dy + i * pixel + c, n) : vec<T>{};
    FF_UNROLL(5)
    for (int k = 0; k < K; ++k) {
      if (!rows[k]) continue;
      const T* x = rows[k] + c;
      vec<T> dw_v[K];
      FF_UNROLL(5)
      for (int l = 0; l < K; ++l) dw_v[l] = load(dw + c * (K * K) + (k * K + l) * lanes<T>);
      FF_UNROLL(20)
      for (int q = 0; q < columns; ++q) {
        const T* at = x;
        x = stepped(x + pixel);
        if (Edge && !(inside >> q & 1u)) continue;
        const vec<T> x_v = in_register<T>(load_n<T>(at, n));
        if (k >= K - S && q < TW * S) __builtin_prefetch(at + ahead, 0, 2);
        FF_UNROLL(5)
        for (int l = 0; l < K; ++l) {
          const int i = (q - l) / S;
          if (q >= l && (q - l) % S == 0 && i < TW) {
            if (!Partial || (wanted >> i & 1u)) dw_v[l] = fma(x_v, dy_v[i], dw_v[l]);
          }
        }
      }
      FF_UNROLL(5)
      for (int l = 0; l < K; ++l) store(dw + c * (K * K) + (k * K + l) * lanes<T>, dw_v[l]);
    }
  });
}

// The tiles by their parts: at borders, and for the rest of the channels, in functions of their own.
template <class T, int K, int S, int TW, bool Edge, Part P>
FF_NOINLINE void forward_apart(const TileRow<T>& r, const T* bias, T* y, idx y_stride, idx pixels, T lo, T hi) {
  forward_tile<T, K, S, TW, Edge, P>(r, bias, y, y_stride, pixels, lo, hi);
}
template <class T, int K, int S, int TW, bool Edge, Part P>
FF_NOINLINE void input_grad_apart(const TileRow<T>& r, T* dx, idx first, idx last, bool streamed) {
  input_grad_tile<T, K, S, TW, Edge, P>(r, dx, first, last, streamed);
}
template <class T, int K, int S, int TW, bool Edge, bool Partial, Part P>
FF_NOINLINE void weight_grad_apart(const TileRow<T>& r, T* dw, const T* dy, idx pixels) {
  weight_grad_tile<T, K, S, TW, Edge, Partial, P>(r, dw, dy, pixels);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
