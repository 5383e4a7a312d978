// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution over a batch: bands of output rows, each computed, activated and measured while it is in L2.
#pragma once
#include "norm/linked.h"
#include "primitives/local.h"

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
  LinkedInput<T> linked_input;
};

// With a norm before it larger bands: the rows that two of them share are normalised for each.
template <class T>
FF_INLINE Bands forward_bands(const DepthwiseShape& s, bool linked_input = false) {
  return Bands(s, s.ow * s.c * static_cast<idx>(sizeof(T)), linked_input ? 192 << 10 : 64 << 10);
}

// Elements of the input rows that `rows` output rows read, or whose gradient they complete.
FF_INLINE idx window_size(const DepthwiseShape& s, idx rows) { return min_idx(s.h, rows * s.sh + s.kh) * s.w * s.c; }

// An image whose rows that output rows [first, end) read are normalised, in `room`; row y stands at the result + y·w·c.
template <class T>
FF_INLINE const T* window_rows(const DepthwiseShape& s, const LinkedInput<T>& linked_input, const T* image, idx first,
                               idx end, T* room) {
  if (!linked_input) return image;
  const idx row = s.w * s.c, low = min_idx(s.h, max_idx(0, first * s.sh - s.top));
  const idx high = min_idx(s.h, max_idx(low, (end - 1) * s.sh - s.top + s.kh));
  linked_input.apply(room, image + low * row, (high - low) * s.w, s.c);
  return room - low * row;
}

// The first row of the input whose gradient is not complete before output row oy.
FF_INLINE idx complete_row(const DepthwiseShape& s, idx oy) {
  return oy <= 0 ? 0 : oy >= s.oh ? s.h : max_idx(0, min_idx(s.h, oy * s.sh - s.top));
}

template <class T>
FF_INLINE void depthwise_forward_pass(const DepthwiseForward<T>& p) {
  const DepthwiseShape& s = p.s;
  const Bands bands = forward_bands<T>(s, static_cast<bool>(p.linked_input));
  const ForwardRow<T> row = row_kernels<T>(s).forward;
  const idx stride = round_up_lanes<T>(s.c), row_size = s.ow * s.c;
  const bool streamed = p.mean && streamable(p.y, s.n * s.oh * row_size, s.c);
  for_tasks(bands.count, p.threads, [&](idx band) {
    const idx first = bands.first(band), end = bands.end(band);
    T *y = p.y + (bands.image(band) * s.oh + first) * row_size, *to = y, *room = nullptr;
    Arena a(Scratch::task);
    if (streamed) to = a.take<T>(bands.rows * row_size);
    if (p.linked_input) room = a.take<T>(window_size(s, bands.rows));
    const T* image = window_rows(s, p.linked_input, p.x + bands.image(band) * s.h * s.w * s.c, first, end, room);
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
  LinkedInput<T> linked_input;   // with partial sums for depthwise_chunks
};

// Chunks of bands with partial sums of their own.
constexpr idx kDepthwiseChunks = 32;

// dw [c][taps] and db from partial sums [parts][taps + 1][c padded], the taps packed as the weights; null where not
// wanted.
template <class T>
FF_INLINE void store_depthwise_grad(T* parts, idx count, const DepthwiseShape& s, T* dw, T* db) {
  const idx taps = s.kh * s.kw, stride = round_up_lanes<T>(s.c), part = (taps + 1) * stride;
  fold_parts(parts, count, part, part);
  if (dw) depthwise_kernels<T>().unpack(dw, parts, s.c, taps);
  for (idx c = 0; db && c < s.c; ++c) db[c] = parts[taps * stride + c];
}

// dx, dw and db in one pass over (dy, x): rows of both are in L2 when the second of the two uses them.
template <class T>
FF_INLINE void depthwise_backward_pass(const DepthwiseBackward<T>& p, Arena& arena) {
  constexpr idx kChunkBytes = 64 << 10, kBandBytes = 128 << 10;
  const DepthwiseShape& s = p.s;
  const idx row = s.ow * s.c, taps = s.kh * s.kw, stride = round_up_lanes<T>(s.c);
  const Bands bands(s, row * static_cast<idx>(sizeof(T)), kBandBytes);
  const idx by_bytes = max_idx(1, s.n * s.oh * row * static_cast<idx>(sizeof(T)) / kChunkBytes);
  const idx chunks = min_idx(bands.count, min_idx(kDepthwiseChunks, by_bytes)), part = (taps + 1) * stride;
  T* parts = arena.take<T>(max_idx(chunks, 1) * part);
  const RowKernels<T> kernels = row_kernels<T>(s);
  const idx halo = (s.kh - 1) / s.sh;
  const bool streamed = streamable(p.dx, s.n * s.h * s.w * s.c, s.c);
  for (idx chunk = 0; p.linked_input && chunk < kDepthwiseChunks; ++chunk) p.linked_input.zero(chunk);
  for_tasks(chunks, p.threads, [&](idx chunk) {
    T *dw = parts + chunk * part, *db = dw + taps * stride, *window = nullptr, *room = nullptr, *dz = nullptr,
      *sums = nullptr;
    fill_zero(dw, part);
    Arena a(Scratch::task);
    if (p.norm) window = a.take<T>((bands.rows + halo) * row);
    if (p.linked_input) {
      room = a.take<T>(window_size(s, bands.rows)), dz = a.take<T>(window_size(s, bands.rows));
      sums = a.take<T>(2 * stride);
    }
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
      const T* z = window_rows(s, p.linked_input, x, first, end, room);
      const idx line = s.w * s.c, low = complete_row(s, first), high = complete_row(s, end);
      T *dx = p.dx ? p.dx + image * s.h * line : nullptr, *to = p.linked_input ? dz - low * line : dx;
      for (idx oy = first; oy < end; ++oy) {
        if (p.dw) kernels.weight_grad(s, z, dy + oy * row, oy, dw);
        if (p.dx)
          for (idx y = complete_row(s, oy); y < complete_row(s, oy + 1); ++y)
            kernels.input_grad(s, dy, above, end, y, p.w, to + y * line, streamed && !p.linked_input);
      }
      if (p.linked_input)
        p.linked_input.gradient(dx + low * line, dz, x + low * line, (high - low) * s.w, s.c, chunk, sums, streamed);
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
  Arena a(Scratch::shared);
  w = a.take<T>(taps * stride);
  bias = a.take<T>(stride);
  pack_depthwise<T>(w, static_cast<const T*>(p.weight), nullptr, s.c, taps);
  copy_padded(bias, static_cast<const T*>(p.bias), s.c);
  depthwise_forward_pass<T>(
      {s, static_cast<const T*>(p.x), w, bias, static_cast<T*>(p.y), nullptr, nullptr, p.threads, {}});
}

template <class T>
FF_INLINE void depthwise_backward(const DepthwiseParams& p) {
  const DepthwiseShape& s = p.shape;
  const idx stride = round_up_lanes<T>(s.c), taps = s.kh * s.kw;
  Arena a(Scratch::shared);
  T* w = a.take<T>(taps * stride);
  pack_depthwise<T>(w, static_cast<const T*>(p.weight), nullptr, s.c, taps);
  depthwise_backward_pass<T>({s,
                              static_cast<const T*>(p.x),
                              w,
                              static_cast<const T*>(p.dy),
                              nullptr,
                              {},
                              nullptr,
                              static_cast<T*>(p.dx),
                              static_cast<T*>(p.d_weight),
                              static_cast<T*>(p.d_bias),
                              p.threads,
                              {}},
                             a);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
