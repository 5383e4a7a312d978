// SPDX-License-Identifier: Apache-2.0
// Passes over the pixels of one image: what the gates need of them, and what they do to them.
#pragma once
#include "pool/best.h"
#include "simd/groups.h"
#include "pool/global_pool.h"

namespace ff {
namespace FF_ISA {
namespace {

// The pixels of an image. Where the channels divide a vector, `fold` pixels share one, and vectors of channels are
// repeated that often.
template <class T>
struct Pixels {
  idx count, channels, fold;

  Pixels(idx count, idx channels)
      : count(count), channels(channels),
        fold(channels < lanes<T> && lanes<T> % channels == 0 ? lanes<T> / channels : 1) {}

  idx columns() const { return fold * channels; }
  // Elements from pixel p on that its row holds.
  FF_CLASS_INLINE idx width(idx p) const { return min_idx(fold, count - p) * channels; }

  // The values of the row's pixels in the lanes of each.
  FF_CLASS_INLINE vec<T> spread(const T* plane, idx p) const {
    vec<T> v = splat<T>(plane[p]);
    for (idx f = 1; f < fold; ++f)
      v = lane_numbers<T>() >= splat_index<T>(f * channels) ? splat<T>(plane[min_idx(p + f, count - 1)]) : v;
    return v;
  }
  FF_CLASS_INLINE ivec<T> spread(const int32_t* plane, idx p) const {
    ivec<T> v = splat_index<T>(plane[p]);
    for (idx f = 1; f < fold; ++f)
      v = lane_numbers<T>() >= splat_index<T>(f * channels) ? splat_index<T>(plane[min_idx(p + f, count - 1)]) : v;
    return v;
  }
  // Channel of each lane of the vector that starts at column c.
  FF_CLASS_INLINE ivec<T> channel_numbers(idx c) const {
    ivec<T> v = lane_numbers<T>() + splat_index<T>(c);
    for (idx f = 1; f < fold; ++f)
      v = lane_numbers<T>() >= splat_index<T>(f * channels) ? lane_numbers<T>() - splat_index<T>(f * channels) : v;
    return v;
  }
  // A vector of channels as the rows' columns.
  void repeat(T* columns_out, const T* values) const {
    for (idx f = 0; f < fold; ++f)
      for (idx c = 0; c < channels; ++c) columns_out[f * channels + c] = values ? values[c] : T(1);
  }
};

// What `channel_maxima` gives, where two pixels share a vector: the transposed vectors hold the even pixels, then the
// odd.
template <class T>
FF_NOINLINE void channel_maxima_of_pairs(const Pixels<T>& px, const T* x, const T* gate, T* max, T* mean,
                                         int32_t* channel) {
  constexpr idx L = lanes<T>, kRows = L / 2;
  constexpr AllLanes<T> all{};
  const vec<T> gate_v = load(gate), channels = splat<T>(static_cast<T>(kRows));
  for (idx first = 0; first < px.count; first += L) {
    vec<T> u[kRows];
    FF_UNROLL(8)
    for (idx r = 0; r < kRows; ++r) {
      const idx p = min_idx(first + 2 * r, (px.count - 1) / 2 * 2);
      u[r] = load_n<T>(x + p * px.channels, px.width(p)) * gate_v;
    }
    transpose_bit<T, 1>(u);
    vec<T> sum = {};
    Best<T> best{u[0], {}};
    FF_UNROLL(8)
    for (idx j = 0; j < kRows; ++j) {
      sum = sum + u[j];
      best.take_once(u[j], splat_index<T>(j));
    }
    const idx n = min_idx(L, px.count - first);
    store_n<T>(max + first, interleave_halves(best.value, all), n);
    store_n<T>(mean + first, interleave_halves(sum / channels, all), n);
    if (channel) store_positions<T, int32_t>(channel + first, interleave_halves(best.position, all), n);
  }
}

// Maximum, its channel, and mean of u = x·gate over the channels of each pixel; lanes are pixels after a transpose.
// `gate` is repeated.
template <class T>
FF_NOINLINE void channel_maxima(const Pixels<T>& px, const T* x, const T* gate, T* max, T* mean, int32_t* channel) {
  constexpr idx L = lanes<T>;
  if (px.fold == 2) return channel_maxima_of_pairs(px, x, gate, max, mean, channel);
  const vec<T> channels = splat<T>(static_cast<T>(px.channels));
  for (idx first = 0; first < px.count; first += L) {
    vec<T> sum = {};
    Best<T> best{};
    for (idx c = 0; c < px.channels; c += L) {
      const idx n = min_idx(L, px.channels - c);
      const vec<T> gate_v = load_n<T>(gate + c, n);
      vec<T> u[L];
      FF_UNROLL(16)
      for (int i = 0; i < L; ++i) u[i] = load_n<T>(x + min_idx(first + i, px.count - 1) * px.channels + c, n) * gate_v;
      transpose<T>(u);
      if (c == 0) best.value = u[0];
      FF_UNROLL(16)
      for (int j = 0; j < L; ++j) {
        if (j >= n) continue;
        sum = sum + u[j];
        best.take_once(u[j], splat_index<T>(c + j));
      }
    }
    const idx n = min_idx(L, px.count - first);
    store_n<T>(max + first, best.value, n);
    store_n<T>(mean + first, sum / channels, n);
    if (channel) store_positions<T, int32_t>(channel + first, best.position, n);
  }
}

// The same where two pixels share a vector.
template <class T>
FF_NOINLINE void channel_dots_of_pairs(const Pixels<T>& px, const T* dout, const T* x, const T* gate, T* dots) {
  constexpr idx L = lanes<T>, kRows = L / 2;
  const vec<T> gate_v = load(gate);
  for (idx first = 0; first < px.count; first += L) {
    vec<T> products[kRows];
    FF_UNROLL(8)
    for (idx r = 0; r < kRows; ++r) {
      const idx p = min_idx(first + 2 * r, (px.count - 1) / 2 * 2), n = px.width(p), at = p * px.channels;
      products[r] = load_n<T>(dout + at, n) * (load_n<T>(x + at, n) * gate_v);
    }
    const vec<T> sums = interleave_halves(reduce_lanes<T, kRows>(products), AllLanes<T>{});
    store_n<T>(dots + first, sums, min_idx(L, px.count - first));
  }
}

// dots[p] = sum_c dout·x·gate; `gate` is repeated.
template <class T>
FF_NOINLINE void channel_dots(const Pixels<T>& px, const T* dout, const T* x, const T* gate, T* dots) {
  constexpr idx L = lanes<T>;
  if (px.fold == 2) return channel_dots_of_pairs(px, dout, x, gate, dots);
  for (idx first = 0; first < px.count; first += L) {
    vec<T> sums[L] = {};
    for (idx c = 0; c < px.channels; c += L) {
      const idx n = min_idx(L, px.channels - c);
      const vec<T> gate_v = load_n<T>(gate + c, n);
      FF_UNROLL(16)
      for (int i = 0; i < L; ++i) {
        const idx at = min_idx(first + i, px.count - 1) * px.channels + c;
        sums[i] = fma(load_n<T>(dout + at, n), load_n<T>(x + at, n) * gate_v, sums[i]);
      }
    }
    store_n<T>(dots + first, reduce_lanes<T>(sums), min_idx(L, px.count - first));
  }
}

// out = x·gate·spatial; spatial null: x·gate. `gate` is repeated.
template <class T>
FF_NOINLINE void scale_pixels(const Pixels<T>& px, const T* x, const T* gate, const T* spatial, T* out) {
  for (idx p = 0; p < px.count; p += px.fold) {
    const vec<T> s = spatial ? px.spread(spatial, p) : splat<T>(1);
    const idx at = p * px.channels;
    for_lanes<T>(px.width(p), [&](idx c, idx n) {
      store_n<T>(out + at + c, load_n<T>(x + at + c, n) * load_n<T>(gate + c, n) * s, n);
    });
  }
}

// The gradient of u is dout·spatial + mean, and max in addition at the pixel's largest channel; spatial null: dout.
template <class T>
struct SpatialGrad {
  const T *spatial, *mean, *max;
  const int32_t* channel;
};

// One row of it; `spread` from the row's first pixel.
template <class T>
struct RowGrad {
  vec<T> spatial, mean, max;
  ivec<T> channel;

  static FF_CLASS_INLINE RowGrad at(const Pixels<T>& px, const SpatialGrad<T>& g, idx p) {
    if (!g.spatial) return {vec<T>{}, vec<T>{}, vec<T>{}, ivec<T>{}};
    return {px.spread(g.spatial, p), px.spread(g.mean, p), px.spread(g.max, p), px.spread(g.channel, p)};
  }
  FF_CLASS_INLINE vec<T> operator()(vec<T> dout, ivec<T> channels) const {
    return fma(dout, spatial, mean) + (channels == channel ? max : vec<T>{});
  }
};

template <class T, int R, class Body>
FF_INLINE void for_pairs(const RowGrad<T>& pixels, idx p, const Body& body) {
  constexpr AllLanes<T> all{};
  if constexpr (R < lanes<T> / 2) {
    body(p + 2 * R, RowGrad<T>{spread_pair<R>(pixels.spatial, all), spread_pair<R>(pixels.mean, all),
                               spread_pair<R>(pixels.max, all), spread_pair<R>(pixels.channel, all)});
    for_pairs<T, R + 1>(pixels, p, body);
  }
}

// Calls body(p, row) for the rows of pixels [first, end).
template <class T, class Body>
FF_INLINE void for_row_grads(const Pixels<T>& px, const SpatialGrad<T>& g, idx first, idx end, const Body& body) {
  constexpr idx L = lanes<T>;
  idx p = first;
  if (px.fold == 2 && g.spatial) {  // a vector of pixels at once, where each pair's values would be loaded anew
    for (; p + L <= end; p += L) {
      const ivec<T> channels = load_positions<T, int32_t>(g.channel + p, L);
      for_pairs<T, 0>(RowGrad<T>{load(g.spatial + p), load(g.mean + p), load(g.max + p), channels}, p, body);
    }
  }
  for (; p < end; p += px.fold) body(p, RowGrad<T>::at(px, g, p));
}

// sums[c] = sum_p du·x.
template <class T>
FF_NOINLINE void gate_sums(const Pixels<T>& px, const SpatialGrad<T>& grad, const T* dout, const T* x, T* sums) {
  constexpr idx L = lanes<T>;
  const idx block = kSumRows * px.fold;
  for_groups<T>(px.columns(), [&](auto count, idx c, idx n) {
    constexpr int V = decltype(count)::value;
    ivec<T> channels[V];
    Channels<T, V> total{};
    FF_UNROLL(4)
    for (int u = 0; u < V; ++u) channels[u] = px.channel_numbers(c + u * L);
    for (idx first = 0; first < px.count; first += block) {
      Channels<T, V> sum{};
      for_row_grads(px, grad, first, min_idx(px.count, first + block), [&](idx p, const RowGrad<T>& row) {
        const idx valid = V > 1 ? L : px.fold > 1 ? px.width(p) : n;
        FF_UNROLL(4)
        for (int u = 0; u < V; ++u) {
          const idx at = p * px.channels + c + u * L;
          vec<T> du = load_n<T>(dout + at, valid);
          if (grad.spatial) du = row(du, channels[u]);
          sum.v[u] = fma(du, load_n<T>(x + at, valid), sum.v[u]);
        }
      });
      FF_UNROLL(4)
      for (int u = 0; u < V; ++u) total.v[u] = total.v[u] + sum.v[u];
    }
    total.to(sums, c);
  });
  for (idx f = 1; f < px.fold; ++f)
    for (idx c = 0; c < px.channels; ++c) sums[c] += sums[f * px.channels + c];
}

// dx = du·gate + share; `gate` and `share` are repeated.
template <class T>
FF_NOINLINE void pixel_grads(const Pixels<T>& px, const SpatialGrad<T>& grad, const T* dout, const T* gate,
                             const T* share, T* dx) {
  for_row_grads(px, grad, 0, px.count, [&](idx p, const RowGrad<T>& row) {
    const idx at = p * px.channels;
    for_lanes<T>(px.width(p), [&](idx c, idx n) {
      vec<T> du = load_n<T>(dout + at + c, n);
      if (grad.spatial) du = row(du, px.channel_numbers(c));
      store_n<T>(dx + at + c, fma(du, load_n<T>(gate + c, n), load_n<T>(share + c, n)), n);
    });
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
