// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution over a batch: bands of output rows, each computed, activated and measured while it is in L2.
#pragma once
#include "norm/stats.h"
#include "separable_conv/depthwise_rows.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr double kInfinity = __builtin_inf();

// Output rows cut into bands of about `bytes`, the same for every image.
struct Bands {
  idx rows, per_image, count, height;

  Bands(const DepthwiseShape& s, idx row_bytes, idx bytes) {
    height = s.oh;
    rows = max_idx(1, min_idx(s.oh, bytes / max_idx(row_bytes, 1)));
    per_image = ceil_div(s.oh, rows);
    count = s.n * per_image;
  }
  idx image(idx band) const { return band / per_image; }
  idx first(idx band) const { return band % per_image * rows; }
  idx end(idx band) const { return min_idx(height, first(band) + rows); }
};

template <class T>
struct DepthwiseForward {
  DepthwiseShape s;
  const T *x, *w, *bias;  // w packed, bias padded
  T* y;
  T *mean, *m2;           // block moments [bands][channels padded], or null
  int threads;
};

template <class T>
FF_INLINE Bands forward_bands(const DepthwiseShape& s) {
  return Bands(s, s.ow * s.c * static_cast<idx>(sizeof(T)), 64 << 10);
}

template <class T>
FF_INLINE void depthwise_forward_pass(const DepthwiseForward<T>& p) {
  const DepthwiseShape& s = p.s;
  const Bands bands = forward_bands<T>(s);
  const ForwardRow<T> row = row_kernels<T>(s).forward;
  const idx stride = round_up_lanes<T>(s.c), row_size = s.ow * s.c;
  const bool streamed = p.mean && streamable(p.y, s.n * s.oh * row_size, s.c);
  for_tasks(bands.count, p.threads, [&](idx band) {
    const T* image = p.x + bands.image(band) * s.h * s.w * s.c;
    const idx first = bands.first(band), end = bands.end(band);
    T* y = p.y + (bands.image(band) * s.oh + first) * row_size;
    T* to = y;
    if (streamed) lay_out(Scratch::task, [&](Arena& a) { to = a.take<T>(bands.rows * row_size); });
    for (idx oy = first; oy < end; ++oy)
      row(s, image, oy, p.w, p.bias, to + (oy - first) * row_size, s.c, T(-kInfinity), T(kInfinity));
    if (p.mean)
      moments_rows(to, s.c, (end - first) * s.ow, s.c, p.mean + band * stride, p.m2 + band * stride,
                   streamed ? y : nullptr, s.c);
    if (streamed) stream_fence();
  });
}

template <class T>
struct DepthwiseBackward {
  DepthwiseShape s;
  const T *x, *w;     // w packed
  const T* dy;        // gradient of the depthwise output; with norm: of the normalisation's output
  const NormGrad<T>* norm;
  NormAct<T> after;   // with norm: what dy has still to pass before it; an activation, or none
  const T* y;         // depthwise output, with norm only
  T *dx, *dw, *db;    // null where not wanted; dw in [c][taps]
  int threads;
};

// dw [c][taps] and db from partial sums [parts][taps + 1][c padded], the taps packed as the weights; null where not wanted.
template <class T>
FF_INLINE void store_depthwise_grad(T* parts, idx count, const DepthwiseShape& s, T* dw, T* db) {
  const idx taps = s.kh * s.kw, stride = round_up_lanes<T>(s.c), part = (taps + 1) * stride;
  fold_parts(parts, count, part, part);
  for (idx c = 0; c < s.c; ++c) {
    for (idx t = 0; dw && t < taps; ++t) dw[c * taps + t] = parts[packed_tap<T>(c, t, taps)];
    if (db) db[c] = parts[taps * stride + c];
  }
}

// dx, dw and db in one pass over (dy, x): rows of both are in L2 when the second of the two uses them.
template <class T>
FF_INLINE void depthwise_backward_pass(const DepthwiseBackward<T>& p, Arena& arena) {
  constexpr idx kChunks = 32, kChunkBytes = 64 << 10, kBandBytes = 128 << 10;
  const DepthwiseShape& s = p.s;
  const idx row = s.ow * s.c, taps = s.kh * s.kw, stride = round_up_lanes<T>(s.c);
  const Bands bands(s, row * static_cast<idx>(sizeof(T)), kBandBytes);
  const idx by_bytes = max_idx(1, s.n * s.oh * row * static_cast<idx>(sizeof(T)) / kChunkBytes);
  const idx chunks = min_idx(bands.count, min_idx(kChunks, by_bytes)), part = (taps + 1) * stride;
  T* parts = arena.take<T>(max_idx(chunks, 1) * part);
  if (!parts) return;
  const RowKernels<T> kernels = row_kernels<T>(s);
  const idx halo = (s.kh - 1) / s.sh;
  const bool streamed = streamable(p.dx, s.n * s.h * s.w * s.c, s.c);
  const auto input_row = [&](idx oy) {
    return oy <= 0 ? 0 : oy >= s.oh ? s.h : max_idx(0, min_idx(s.h, oy * s.sh - s.top));
  };
  for_tasks(chunks, p.threads, [&](idx chunk) {
    T *dw = parts + chunk * part, *db = dw + taps * stride, *window = nullptr;
    fill_zero(dw, part);
    if (p.norm) lay_out(Scratch::task, [&](Arena& a) { window = a.take<T>((bands.rows + halo) * row); });
    for (idx band = bands.count * chunk / chunks; band < bands.count * (chunk + 1) / chunks; ++band) {
      const idx image = bands.image(band), first = bands.first(band), end = bands.end(band);
      const idx above = max_idx(0, first - halo), pixel = (image * s.oh + above) * s.ow;
      const T* dy = p.dy + image * s.oh * row;
      if (p.norm) {
        norm_act_grad_rows<T>(window, s.c, p.dy + pixel * s.c, s.c, p.y + pixel * s.c, s.c, (end - above) * s.ow, s.c,
                              p.after, *p.norm);
        dy = window - above * row;
      }
      const T* x = p.x + image * s.h * s.w * s.c;
      for (idx oy = first; oy < end; ++oy) {
        if (p.dw) kernels.weight_grad(s, x, dy + oy * row, oy, dw);
        if (p.dx)
          for (idx y = input_row(oy); y < input_row(oy + 1); ++y)
            kernels.input_grad(s, dy, above, end, y, p.w, p.dx + (image * s.h + y) * s.w * s.c, streamed);
      }
      if (p.db) sums_rows<T>(dy + first * row, s.c, (end - first) * s.ow, s.c, db);
    }
    if (streamed) stream_fence();
  });
  if (chunks == 0) fill_zero(parts, part);
  store_depthwise_grad(parts, chunks, s, p.dw, p.db);
}

template <class T>
FF_INLINE void depthwise_forward(const DepthwiseParams& p) {
  const DepthwiseShape& s = p.shape;
  const idx stride = round_up_lanes<T>(s.c), taps = s.kh * s.kw;
  T *w = nullptr, *bias = nullptr;
  lay_out(Scratch::shared, [&](Arena& a) {
    w = a.take<T>(taps * stride);
    bias = a.take<T>(stride);
  });
  pack_depthwise<T>(w, static_cast<const T*>(p.w), nullptr, s.c, taps);
  copy_padded(bias, static_cast<const T*>(p.bias), s.c);
  depthwise_forward_pass<T>({s, static_cast<const T*>(p.x), w, bias, static_cast<T*>(p.y), nullptr, nullptr, p.threads});
}

template <class T>
FF_INLINE void depthwise_backward(const DepthwiseParams& p) {
  const DepthwiseShape& s = p.shape;
  const idx stride = round_up_lanes<T>(s.c), taps = s.kh * s.kw;
  lay_out(Scratch::shared, [&](Arena& a) {
    T* w = a.take<T>(taps * stride);
    if (w) pack_depthwise<T>(w, static_cast<const T*>(p.w), nullptr, s.c, taps);
    depthwise_backward_pass<T>({s, static_cast<const T*>(p.x), w, static_cast<const T*>(p.dy), nullptr, {}, nullptr,
                                static_cast<T*>(p.dx), static_cast<T*>(p.dw), static_cast<T*>(p.db), p.threads},
                               a);
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
