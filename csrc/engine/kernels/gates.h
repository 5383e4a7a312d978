// SPDX-License-Identifier: Apache-2.0
// Gates: pools of pixels over the channels, the spatial convolution, and maps times their gates.
#pragma once
#include "engine/kernels/pixels.h"
#include "simd/lanes.h"

namespace ff {
namespace FF_ISA {
namespace {

FF_INLINE float sigmoid(float v) { return logistic<float>(splat(v))[0]; }

// What the pools of one group of L pixels gather before lanes are folded.
struct PixelGroup {
  alignas(64) float sum[L * L], most[L * L];
};

// Lane i of the result: the fold of vector i, for L vectors at v, which are overwritten.
template <class Op>
FF_INLINE vecf fold_each(float* v, const Op& op) {
  for (idx n = L / 2; n > 0; n /= 2)
    for (idx i = 0; i < n; ++i) {
      const vecf a = load(v + 2 * i * L), b = load(v + (2 * i + 1) * L);
      store(v + i * L, op(even_lanes(a, b), odd_lanes(a, b)));
    }
  return load(v);
}

// Pixels [x, x + N) of row y into places `first` on of the group.
template <int N>
FF_INLINE void gather_pixels(const engine::PixelPools& p, idx y, idx x, idx first, PixelGroup& group) {
  const idx blocks = blocks_of(p.x.channels), last = p.x.channels - (blocks - 1) * L;
  const vecf least = splat(-__builtin_inff());
  const i32v real = (i32v)(lane_numbers() < splat(static_cast<float>(last)));
  vecf sum[N], most[N];
  FF_UNROLL(4)
  for (int i = 0; i < N; ++i) sum[i] = vecf{}, most[i] = least;
  for (idx block = 0; block < blocks; ++block) {
    const float* from = at(p.x, block, y, x);
    const vecf scale = p.channel ? load(p.channel + block * L) : splat(1.f),
               tap = p.taps ? load(p.taps + block * L) : splat(1.f);
    FF_UNROLL(4)
    for (int i = 0; i < N; ++i) {
      vecf v = load(from + i * L) * scale, bound = v;
      if (block == blocks - 1) v = (vecf)((i32v)v & real), bound = real ? v : least;
      sum[i] = fma(v, tap, sum[i]), most[i] = larger(bound, most[i]);
    }
  }
  FF_UNROLL(4)
  for (int i = 0; i < N; ++i) store(group.sum + (first + i) * L, sum[i]), store(group.most + (first + i) * L, most[i]);
}

FF_NOINLINE void pixel_pools(const engine::PixelPools& p, Part part) {
  const bool maxima = p.max || p.at_max != 0.f;
  const vecf share = splat(p.taps ? 1.f : 1.f / static_cast<float>(p.x.channels));
  PixelGroup group = {};
  for (idx y = part.y0; y < part.y1; ++y)
    for_lanes<float>(p.x.width, [&](idx x, idx n) {
      const idx fours = n / 4 * 4;
      for (idx i = 0; i < fours; i += 4) gather_pixels<4>(p, y, x + i, i, group);
      for (idx i = fours; i < n; ++i) gather_pixels<1>(p, y, x + i, i, group);
      const vecf mean = share * fold_each(group.sum, [](vecf a, vecf b) { return a + b; });
      const vecf most = maxima ? fold_each(group.most, [](vecf a, vecf b) { return larger(a, b); }) : vecf{};
      if (p.max) store_n<float>(p.max + y * p.row + x, most, n);
      if (p.mean) store_n<float>(p.mean + y * p.row + x, mean, n);
      if (!p.gate) return;
      const vecf logit = fma(splat(p.at_max), most, fma(splat(p.at_mean), mean, splat(p.bias)));
      store_n<float>(p.gate + y * p.gate_row + x, logistic<float>(logit), n);
    });
}

// What input row i, from its first column on, adds to R rows of V vectors of a K×K convolution (K 0: any, R 1). Only
// the first n lanes of the last vector are there.
template <int K, int R, int V>
FF_INLINE void spatial_line(const float* from, const float* w, idx kh, idx kw, idx i, idx n, vecf (&sum)[R][V]) {
  for (idx kx = 0; kx < kw; ++kx) {
    vecf in[V];
    FF_UNROLL(4)
    for (int v = 0; v < V; ++v) in[v] = load_n<float>(from + kx + v * L, v == V - 1 ? n : L);
    FF_UNROLL(4)
    for (int r = 0; r < R; ++r) {
      if (i < r || i - r >= kh) continue;
      const vecf tap = splat(w[(i - r) * kw + kx]);
      FF_UNROLL(4)
      for (int v = 0; v < V; ++v) sum[r][v] = fma(in[v], tap, sum[r][v]);
    }
  }
}

template <int K, int R, int V>
FF_INLINE void spatial_tile(const engine::PixelGate& p, idx y, idx x, idx n) {
  const idx kh = K ? K : p.kh, kw = K ? K : p.kw;
  vecf sum[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sum[r][v] = splat(p.bias);
  for (idx plane = 0; plane < p.count; ++plane) {
    const float* from = p.planes + plane * p.plane + (y - kh / 2) * p.row + x - kw / 2;
    const float* w = p.weights + plane * kh * kw;
    if constexpr (K > 0) {
      FF_UNROLL(16)
      for (int i = 0; i < R + K - 1; ++i) spatial_line<K>(from + i * p.row, w, kh, kw, i, n, sum);
    } else {
      for (idx i = 0; i < kh; ++i) spatial_line<K>(from + i * p.row, w, kh, kw, i, n, sum);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v)
      store_n<float>(p.y + (y + r) * p.y_row + x + v * L, logistic<float>(sum[r][v]), v == V - 1 ? n : L);
}

template <int K, int R>
FF_NOINLINE void spatial_rows(const engine::PixelGate& p, idx y) {
  constexpr int kWide = kRegisters == 32 && R > 1 ? 3 : 2;
  idx x = 0;
  for (; x + kWide * L <= p.width; x += kWide * L) spatial_tile<K, R, kWide>(p, y, x, L);
  for (; x < p.width; x += L) spatial_tile<K, R, 1>(p, y, x, min_idx(L, p.width - x));
}

template <int K>
FF_INLINE void spatial_part(const engine::PixelGate& p, Part part) {
  constexpr int kRows = K ? 4 : 1;
  idx y = part.y0;
  for (; y + kRows <= part.y1; y += kRows) spatial_rows<K, kRows>(p, y);
  for (; y < part.y1; ++y) spatial_rows<K, 1>(p, y);
}

static void pixel_gate(const engine::PixelGate& p, Part part) {
  if (p.kh == 7 && p.kw == 7) return spatial_part<7>(p, part);
  if (p.kh == 3 && p.kw == 3) return spatial_part<3>(p, part);
  spatial_part<0>(p, part);
}

// x · gate of a pixel; Sum: the channel's and the pixel's gate are added, else multiplied.
template <bool Sum>
FF_INLINE vecf gated_pixel(const float* x, vecf channel, const float* pixel) {
  const vecf v = load(x);
  if (!pixel) return v * channel;
  return v * (Sum ? channel + splat(*pixel) : channel * splat(*pixel));
}

template <bool Sum, bool Pool>
FF_INLINE void gated_row(const engine::Gated& p, idx block, idx y, vecf channel) {
  constexpr int kStep = Pool ? 2 : 1;
  const float *x = at(p.x, block, kStep * y), *residual = p.residual.data ? at(p.residual, block, y) : nullptr;
  const float* pixel = p.pixel ? p.pixel + kStep * y * p.pixel_row : nullptr;
  const float* below = pixel ? pixel + p.pixel_row : nullptr;
  float* to = at(p.y, block, y);
  for (idx i = 0; i < p.y.width; ++i) {
    vecf v = gated_pixel<Sum>(x, channel, pixel);
    if constexpr (Pool) {
      v = larger(gated_pixel<Sum>(x + L, channel, pixel ? pixel + 1 : nullptr), v);
      v = larger(gated_pixel<Sum>(x + p.x.row, channel, below), v);
      v = larger(gated_pixel<Sum>(x + p.x.row + L, channel, below ? below + 1 : nullptr), v);
      below = below ? below + 2 : nullptr;
    }
    store(to + i * L, residual ? v + load(residual + i * L) : v);
    x += kStep * L;
    pixel = pixel ? pixel + kStep : nullptr;
  }
}

FF_NOINLINE void gated(const engine::Gated& p, Part part) {
  for (idx block = part.b0; block < part.b1; ++block) {
    const vecf channel = p.channel ? load(p.channel + block * L) : splat(p.sum ? 0.f : 1.f);
    for (idx y = part.y0; y < part.y1; ++y) {
      if (p.pool)
        p.sum ? gated_row<true, true>(p, block, y, channel) : gated_row<false, true>(p, block, y, channel);
      else
        p.sum ? gated_row<true, false>(p, block, y, channel) : gated_row<false, false>(p, block, y, channel);
    }
  }
}

// `means` has zeros for half the taps on both sides of the channels.
FF_NOINLINE void neighbour_gate(const engine::NeighbourGate& p) {
  for (idx c = 0; c < p.channels; c += L) {
    vecf sum = {};
    for (idx k = 0; k < p.taps; ++k) sum = fma(splat(p.weights[k]), load(p.means + c + k - p.taps / 2), sum);
    store(p.y + c, logistic<float>(sum));
  }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
