// SPDX-License-Identifier: Apache-2.0
// Bands of an image's rows, and one read of a band for the sums of its channels and the maximum and mean, or the
// weighted sum, of each of its pixels.
#pragma once
#include "gate/channel.h"
#include "simd/groups.h"
#include "simd/math.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr int kQuad = 4;  // pixels, or the pixels of a 2×2 window, that share a load of what belongs to a channel

// Each image in bands of an even number of rows, about 256 KiB; their sums are added in order.
struct Bands {
  idx rows, count;

  template <class T>
  static FF_CLASS_INLINE Bands of(const GateParams& p) {
    constexpr idx kBytes = 256 << 10;
    const idx bytes = p.w * p.c * static_cast<idx>(sizeof(T));
    const idx rows = max_idx(2, kBytes / max_idx(1, bytes) / 2 * 2);
    return {rows, max_idx(1, ceil_div(p.h, rows))};
  }
};

// measure(image, band) for all bands of an image, then between(image), then apply(image, band). Where there are images
// enough a task does all three, and what is read twice is in its cache.
template <class Measure, class Between, class Apply>
FF_INLINE void for_images(const GateParams& p, const Bands& bands, const Measure& measure, const Between& between,
                          const Apply& apply) {
  if (p.n >= 4) {
    for_tasks(p.n, p.threads, [&](idx image) {
      for (idx band = 0; band < bands.count; ++band) measure(image, band);
      between(image);
      for (idx band = 0; band < bands.count; ++band) apply(image, band);
    });
    return;
  }
  for_tasks(p.n * bands.count, p.threads, [&](idx task) { measure(task / bands.count, task % bands.count); });
  for_tasks(p.n, p.threads, between);
  for_tasks(p.n * bands.count, p.threads, [&](idx task) { apply(task / bands.count, task % bands.count); });
}

// `count` pixels at x, in `room` where a norm comes before.
template <class T>
FF_INLINE const T* normalised(const LinkedInput<T>& linked_input, const T* x, idx count, idx channels, T* room) {
  if (!linked_input) return x;
  linked_input.apply(room, x, count, channels);
  return room;
}

enum class PixelKind { none, pooled, linear };

FF_INLINE PixelKind pixel_kind(const GateParams& p) {
  return !p.sw ? PixelKind::none : p.linear ? PixelKind::linear : PixelKind::pooled;
}

// Partial results [lanes][lanes] of as many pixels as a vector has lanes.
template <class T>
struct Partial {
  T *sum, *max, *at;

  void take(Arena& a) {
    constexpr idx L = lanes<T>;
    sum = a.take<T>(L * L), max = a.take<T>(L * L), at = a.take<T>(L * L);
  }
};

// Adds `Count` pixels to the channels' sums (null: none), and leaves their sums, maxima and places of these by lanes.
template <class T, PixelKind Kind, int Count>
FF_INLINE void read_pixels(const T* x, idx channels, T* channel_sums, const T* weights, const Partial<T>& to) {
  constexpr idx L = lanes<T>;
  vec<T> sum[Count], max[Count], at[Count];
  FF_UNROLL(4)
  for (int u = 0; u < Count; ++u) sum[u] = at[u] = vec<T>{}, max[u] = splat<T>(T(-__builtin_inf()));
  const auto body = [&](idx c, idx n, bool whole) __attribute__((always_inline)) {
    vec<T> channel = channel_sums ? load(channel_sums + c) : vec<T>{};
    const vec<T> weight = Kind == PixelKind::linear ? load(weights + c) : vec<T>{}, here = splat<T>(T(c));
    FF_UNROLL(4)
    for (int u = 0; u < Count; ++u) {
      const vec<T> v = whole ? load(x + u * channels + c) : load(x + u * channels + c, n);
      channel = channel + v;
      sum[u] = Kind == PixelKind::linear ? fma(v, weight, sum[u]) : sum[u] + v;
      if (Kind == PixelKind::pooled) {
        const vec<T> bounded = whole ? v : (lane_values<T>() < splat<T>(T(n)) ? v : splat<T>(T(-__builtin_inf())));
        const auto larger = bounded > max[u];
        max[u] = larger ? bounded : max[u];
        at[u] = larger ? here : at[u];
      }
    }
    if (channel_sums) store(channel_sums + c, channel);
  };
  idx c = 0;
  for (; c + L <= channels; c += L) body(c, L, true);
  if (c < channels) body(c, channels - c, false);
  FF_UNROLL(4)
  for (int u = 0; u < Count; ++u) {
    store(to.sum + u * L, sum[u]);
    if (Kind == PixelKind::pooled) store(to.max + u * L, max[u]), store(to.at + u * L, at[u]);
  }
}

// Adds `Rows` pixels of x, or of x · y, to the channels' sums.
template <class T, bool Product, int Rows>
FF_INLINE void add_pixels(const T* x, const T* y, idx channels, T* sums) {
  for_lanes<T>(channels, [&](idx c, idx n) {
    vec<T> sum[2] = {load(sums + c), vec<T>{}};
    FF_UNROLL(8)
    for (int u = 0; u < Rows; ++u) {
      const vec<T> v = load_n<T>(x + u * channels + c, n);
      sum[u % 2] = Product ? fma(v, load_n<T>(y + u * channels + c, n), sum[u % 2]) : sum[u % 2] + v;
    }
    store(sums + c, sum[0] + sum[1]);
  });
}

// The channels' sums of `count` pixels of x, or of x · y: all that is asked for without a pixel gate.
template <class T, bool Product>
FF_NOINLINE void sum_pixels(const T* x, const T* y, idx count, idx channels, T* sums) {
  constexpr int kRows = 8;
  idx p = 0;
  for (; p + kRows <= count; p += kRows)
    add_pixels<T, Product, kRows>(x + p * channels, y + p * channels, channels, sums);
  for (; p < count; ++p) add_pixels<T, Product, 1>(x + p * channels, y + p * channels, channels, sums);
}

// Where a pixel has a NaN its maximum is that, the first.
template <class T>
FF_INLINE void find_nan(const T* x, idx channels, T* max, T* at) {
  for (idx c = 0; c < channels; ++c) {
    if (x[c] == x[c]) continue;
    *max = x[c], *at = T(c);
    return;
  }
}

// Pixels [0, count) at x: out [3][plane] maximum, mean, place, or [1][plane] weighted sum plus bias. `weights` is
// padded.
template <class T, PixelKind Kind>
FF_NOINLINE void measure_pixels(const T* x, idx count, idx channels, T* channel_sums, const T* weights, T bias, T* out,
                                idx plane, const Partial<T>& partial) {
  constexpr idx L = lanes<T>;
  for (idx p = 0; p < count; p += L) {
    const idx n = min_idx(L, count - p);
    const T* from = x + p * channels;
    for (idx u = 0; u < n;) {
      const Partial<T> to{partial.sum + u * L, partial.max + u * L, partial.at + u * L};
      if (u + kQuad <= n)
        read_pixels<T, Kind, kQuad>(from + u * channels, channels, channel_sums, weights, to), u += kQuad;
      else
        read_pixels<T, Kind, 1>(from + u * channels, channels, channel_sums, weights, to), ++u;
    }
    const vec<T> sums = reduce_lanes_of<T>(partial.sum, Add{});
    if (Kind == PixelKind::linear) {
      store_n<T>(out + p, sums + splat<T>(bias), n);
      continue;
    }
    const vec<T> largest = reduce_lanes_of<T>(partial.max, Larger{});
    store_n<T>(out + p, largest, n);
    store_n<T>(out + plane + p, sums / splat<T>(T(channels)), n);
    for (idx u = 0; u < n; ++u) {
      const vec<T> place = load(partial.at + u * L) + lane_values<T>();
      store(partial.at + u * L, load(partial.max + u * L) == splat<T>(out[p + u]) ? place : splat<T>(T(channels)));
    }
    store_n<T>(out + 2 * plane + p, reduce_lanes_of<T>(partial.at, Smaller{}), n);
    for (idx u = 0; u < n; ++u)
      if (!(out[plane + p + u] == out[plane + p + u]))
        find_nan<T>(from + u * channels, channels, out + p + u, out + 2 * plane + p + u);
  }
}

// gates = sigmoid(sw[0] · maximum + sw[1] · mean + sb), or of the logit, of `count` pixels.
template <class T>
FF_INLINE void pixel_gates(const GateParams& p, const T* values, idx plane, idx count, T* gates) {
  const T *w = static_cast<const T*>(p.sw), *b = static_cast<const T*>(p.sb);
  for_lanes<T>(count, [&](idx i, idx n) {
    vec<T> logit = load_n<T>(values + i, n);
    if (!p.linear) logit = logit * splat<T>(w[0]) + load_n<T>(values + plane + i, n) * splat<T>(w[1]) + splat<T>(b[0]);
    store_n<T>(gates + i, logistic<T>(logit), n);
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
