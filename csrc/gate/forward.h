// SPDX-License-Identifier: Apache-2.0
// Gates, forward: a read of the image for the sums, its gates, and a read that multiplies, and pools.
#pragma once
#include "gate/pixels.h"

namespace ff {
namespace FF_ISA {
namespace {

// out = x · (channel gate + pixel gate) for `count` pixels; pixel gates null: none.
template <class T>
FF_NOINLINE void multiply_pixels(T* out, const T* x, const T* channel, const T* pixel, idx count, idx channels) {
  for (idx p = 0; p < count; ++p) {
    const vec<T> s = pixel ? splat<T>(pixel[p]) : vec<T>{};
    for_lanes<T>(channels, [&](idx c, idx n) {
      store_n<T>(out + p * channels + c, load_n<T>(x + p * channels + c, n) * (load(channel + c) + s), n);
    });
  }
}

// The maxima of the products in the 2×2 windows of two rows; NaN wins.
template <class T>
FF_NOINLINE void multiply_windows(T* out, const T* x, const T* channel, const T* pixel, idx width, idx channels) {
  const T *below = x + width * channels, *pixel_below = pixel + width;
  for (idx j = 0; j + 1 < width; j += 2, out += channels) {
    const vec<T> gates[4] = {splat<T>(pixel[j]), splat<T>(pixel[j + 1]), splat<T>(pixel_below[j]),
                             splat<T>(pixel_below[j + 1])};
    for_lanes<T>(channels, [&](idx c, idx n) {
      const vec<T> g = load(channel + c);
      vec<T> most = load_n<T>(x + j * channels + c, n) * (g + gates[0]);
      FF_UNROLL(4)
      for (int k = 1; k < 4; ++k) {
        const vec<T> v = load_n<T>((k < 2 ? x : below) + (j + k % 2) * channels + c, n) * (g + gates[k]);
        most = ((v > most) | (v != v)) ? v : most;
      }
      store_n<T>(out + c, most, n);
    });
  }
}

template <class T>
FF_INLINE void fold_means(const GateParams& p, const T* sums, idx stride, const Bands& bands, T* means) {
  const double pixels = static_cast<double>(p.h * p.w);
  for (idx c = 0; c < p.c; ++c) {
    double sum = 0;
    for (idx band = 0; band < bands.count; ++band) sum += static_cast<double>(sums[band * stride + c]);
    means[c] = static_cast<T>(sum / pixels);
  }
}

template <class T>
FF_INLINE void gate_forward(const GateParams& p, bool train) {
  const Bands bands = Bands::of<T>(p);
  const PixelKind kind = pixel_kind(p);
  const idx stride = round_up_lanes<T>(p.c), plane = p.h * p.w, planes = kind == PixelKind::linear ? 1 : 3;
  const idx size = plane * p.c, out_size = p.pool ? p.h / 2 * (p.w / 2) * p.c : size;
  const T* x = static_cast<const T*>(p.x);
  T *sums = nullptr, *gates = nullptr, *values = nullptr, *pixel = nullptr, *weights = nullptr, *means = nullptr;
  LinkedInput<T> linked_input;
  Arena a(Scratch::shared);
  sums = a.take<T>(p.w1 ? p.n * bands.count * stride : 0), gates = a.take<T>(p.n * stride);
  means = a.take<T>(train ? 0 : p.n * p.c);
  values = a.take<T>(train || kind == PixelKind::none ? 0 : p.n * planes * plane);
  pixel = a.take<T>(kind == PixelKind::none ? 0 : p.n * plane), weights = a.take<T>(p.c);
  linked_input.take(a, p.linked_input, p.c);
  linked_input.fill(p.linked_input, p.c);
  const idx room_size = linked_input ? bands.rows * p.w * p.c : 0;
  if (train) means = static_cast<T*>(p.means), values = static_cast<T*>(p.pixels);
  if (kind == PixelKind::linear) copy_padded(weights, static_cast<const T*>(p.sw), p.c);
  const auto pixels_of = [&](idx image) { return kind == PixelKind::none ? nullptr : pixel + image * plane; };
  for_images(
      p, bands,
      [&](idx image, idx band) {
        const idx first = band * bands.rows * p.w, count = min_idx(plane, first + bands.rows * p.w) - first;
        T *band_sums = p.w1 ? sums + (image * bands.count + band) * stride : nullptr,
          *to = values + image * planes * plane + first;
        T* room = nullptr;
        Partial<T> partial{};
        Arena a(Scratch::task);
        partial.take(a), room = a.take<T>(room_size);
        const T* from = normalised(linked_input, x + image * size + first * p.c, count, p.c, room);
        if (band_sums) fill_zero(band_sums, stride);
        if (kind == PixelKind::none) {
          sum_pixels<T, false>(from, from, count, p.c, band_sums);
          return;
        }
        if (kind == PixelKind::linear)
          measure_pixels<T, PixelKind::linear>(from, count, p.c, band_sums, weights, static_cast<const T*>(p.sb)[0], to,
                                               plane, partial);
        else
          measure_pixels<T, PixelKind::pooled>(from, count, p.c, band_sums, weights, T(0), to, plane, partial);
        pixel_gates<T>(p, to, plane, count, pixel + image * plane + first);
      },
      [&](idx image) {
        T* channel = gates + image * stride;
        fill_zero(channel, stride);
        if (!p.w1) return;
        ChannelValues<T> v{};
        Arena a(Scratch::task);
        v.take(a, p);
        fold_means<T>(p, sums + image * bands.count * stride, stride, bands, means + image * p.c);
        channel_logits<T>(p, means + image * p.c, v);
        act_vector<T>(channel, v.logits, p.c, p.gate_act);
      },
      [&](idx image, idx band) {
        const idx row = band * bands.rows, rows = min_idx(bands.rows, p.h - row), first = row * p.w;
        T* room = nullptr;
        if (linked_input) {
          Arena a(Scratch::task);
          room = a.take<T>(room_size);
        }
        const T* from = normalised(linked_input, x + image * size + first * p.c, rows * p.w, p.c, room);
        const T *channel = gates + image * stride, *s = pixels_of(image);
        T* out = static_cast<T*>(p.out) + image * out_size;
        if (!p.pool) {
          multiply_pixels<T>(out + first * p.c, from, channel, s ? s + first : nullptr, rows * p.w, p.c);
          return;
        }
        for (idx i = 0; i + 1 < rows; i += 2)
          multiply_windows<T>(out + (row + i) / 2 * (p.w / 2) * p.c, from + i * p.w * p.c, channel, s + first + i * p.w,
                              p.w, p.c);
      });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
