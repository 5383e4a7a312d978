// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution on blocked maps: tiles of TX pixels of a row and one channel block, the filter in registers
// where it fits (3×3 with 32 registers), else one row of it at a time. The map's border is the padding: tiles have no
// edges.
#pragma once
#include "engine/kernels/conv.h"

namespace ff {
namespace FF_ISA {
namespace {

static size_t depthwise_packed(int channels, const Window& w) {
  return static_cast<size_t>(blocks_of(channels) * L * taps_of(w));
}

// [block][tap][L]
static void pack_depthwise(float* packed, const float* w, int channels, const Window& window) {
  const idx taps = taps_of(window);
  for (idx b = 0; b < blocks_of(channels); ++b)
    for (idx t = 0; t < taps; ++t)
      for (idx c = b * L; c < (b + 1) * L; ++c) *packed++ = c < channels ? w[c * taps + t] : 0.f;
}

// Rows of one channel block, from output column 0 on.
struct DepthwiseRows {
  const float* x;  // first tap of the first output
  idx x_row, kh, kw, sh, sw, dh, dw;
  const float *weights, *bias;
  idx rows, y_row, residual_row;  // floats between rows of outputs
  Finish finish;
};

FF_INLINE void next_row(Finish& f, const DepthwiseRows& d) {
  f.y += d.y_row;
  if (f.residual) f.residual += d.residual_row;
}

// TX pixels of a K×K filter with stride S.
template <int K, int S, int TX, bool Held>
FF_INLINE void depthwise_tile(const DepthwiseRows& d, const vecf* held, const float* x, const Finish& f, idx at) {
  vecf acc[TX][1];
  FF_UNROLL(16)
  for (int i = 0; i < TX; ++i) acc[i][0] = load(d.bias);
  FF_UNROLL(5)
  for (int k = 0; k < K; ++k) {
    vecf w[K];
    FF_UNROLL(5)
    for (int l = 0; l < K; ++l) w[l] = Held ? held[k * K + l] : in_register<float>(load(d.weights + (k * K + l) * L));
    FF_UNROLL(32)
    for (int q = 0; q < (TX - 1) * S + K; ++q) {
      const vecf v = in_register<float>(load(x + k * d.x_row + q * L));
      FF_UNROLL(5)
      for (int l = 0; l < K; ++l) {
        const int i = (q - l) / S;
        if (q >= l && (q - l) % S == 0 && i < TX) acc[i][0] = fma(v, w[l], acc[i][0]);
      }
    }
  }
  finish_tile<TX, 1>(acc, f, at);
}

template <int K, int S, int TX>
FF_NOINLINE void depthwise_rows(const DepthwiseRows& d, idx x0, idx tiles) {
  constexpr bool held = K * K + TX + 4 <= kRegisters;
  vecf w[K * K];
  if constexpr (held) {
    FF_UNROLL(25)
    for (int t = 0; t < K * K; ++t) w[t] = load(d.weights + t * L);
  }
  Finish f = d.finish;
  const float* x = d.x + x0 * S * L;
  for (idx i = 0; i < d.rows; ++i, x += S * d.x_row, next_row(f, d))
    for (idx tile = 0; tile < tiles; ++tile)
      depthwise_tile<K, S, TX, held>(d, w, x + tile * TX * S * L, f, (x0 + tile * TX) * L);
}

// TX pixels of any window. Each fma loads its input: with as many loads a cycle as fma that costs no more than holding
// what taps share, and windows whose stride is their size share nothing.
template <int TX>
FF_NOINLINE void depthwise_any(const DepthwiseRows& d, idx x0, idx tiles) {
  Finish f = d.finish;
  for (idx i = 0; i < d.rows; ++i, next_row(f, d))
    for (idx tile = 0; tile < tiles; ++tile) {
      const idx first = x0 + tile * TX;
      vecf acc[TX][1];
      FF_UNROLL(8)
      for (int j = 0; j < TX; ++j) acc[j][0] = load(d.bias);
      for (idx k = 0; k < d.kh; ++k)
        for (idx l = 0; l < d.kw; ++l) {
          const vecf w = load(d.weights + (k * d.kw + l) * L);
          const float* x = d.x + (i * d.sh + k * d.dh) * d.x_row + (first * d.sw + l * d.dw) * L;
          FF_UNROLL(8)
          for (int j = 0; j < TX; ++j, x += d.sw * L) acc[j][0] = fma(load(x), w, acc[j][0]);
        }
      finish_tile<TX, 1>(acc, f, first * L);
    }
}

struct DepthwiseSizes {
  static constexpr int kMost = 7;
  int count, pixels[kMost];
  void (*run[kMost])(const DepthwiseRows&, idx, idx);
};

template <int K, int S, int... TX>
constexpr DepthwiseSizes depthwise_sizes() {
  return {sizeof...(TX), {TX...}, {depthwise_rows<K, S, TX>...}};
}

FF_INLINE const DepthwiseSizes& depthwise_tiles(const Window& w) {
  static constexpr bool many_registers = kRegisters == 32;
  static constexpr DepthwiseSizes any{
      4, {8, 4, 2, 1}, {depthwise_any<8>, depthwise_any<4>, depthwise_any<2>, depthwise_any<1>}};
  static constexpr DepthwiseSizes k3s1 = depthwise_sizes<3, 1, many_registers ? 14 : 8, many_registers ? 8 : 7,
                                                         many_registers ? 7 : 6, many_registers ? 6 : 5, 4, 2, 1>();
  static constexpr DepthwiseSizes k3s2 = depthwise_sizes<3, 2, many_registers ? 14 : 8, many_registers ? 8 : 7,
                                                         many_registers ? 7 : 6, many_registers ? 6 : 5, 4, 2, 1>();
  static constexpr DepthwiseSizes k5s1 =
      depthwise_sizes<5, 1, many_registers ? 14 : 6, many_registers ? 7 : 5, 4, many_registers ? 2 : 3, 1>();
  static constexpr DepthwiseSizes k5s2 =
      depthwise_sizes<5, 2, many_registers ? 14 : 6, many_registers ? 7 : 5, 4, many_registers ? 2 : 3, 1>();
  if (w.kh != w.kw || w.sh != w.sw || w.dh != 1 || w.dw != 1) return any;
  if (w.kh == 3) return w.sw == 1 ? k3s1 : w.sw == 2 ? k3s2 : any;
  if (w.kh == 5) return w.sw == 1 ? k5s1 : w.sw == 2 ? k5s2 : any;
  return any;
}

// Least number of tiles, weighted by what a tile of p pixels costs: its loads and its latency beside the fma.
FF_INLINE int best_depthwise(const DepthwiseSizes& s, idx width) {
  int best = 0;
  idx least = 0;
  for (int first = 0; first < s.count; ++first) {
    idx cost = 0, left = width;
    for (int i = first; i < s.count; ++i) cost += left / s.pixels[i] * max_idx(s.pixels[i] + 1, 6), left %= s.pixels[i];
    if (first == 0 || cost < least) best = first, least = cost;
  }
  return best;
}

static void depthwise(const Conv& c, Part part) {
  const Window& w = c.window;
  const Epilogue& e = c.epilogue;
  const DepthwiseSizes& sizes = depthwise_tiles(w);
  const int first = best_depthwise(sizes, c.y.width);
  const idx rows = rows_to_finish(e, c.y, part.y1 - part.y0);
  DepthwiseRows d{nullptr, c.x.row, w.kh,    w.kw, w.sh,    w.sw,           w.dh,
                  w.dw,    nullptr, nullptr, rows, c.y.row, e.residual.row, finish_of(e, c.y)};
  for (idx b = part.b0; b < part.b1; ++b) {
    d.x = c.x.data + b * c.x.block + (static_cast<idx>(part.y0) * w.sh - w.top) * c.x.row - w.left * L;
    d.weights = c.weights + b * taps_of(w) * L;
    d.bias = e.bias + b * L;
    for (idx y = part.y0; y < part.y1; y += rows, d.x += rows * w.sh * d.x_row) {
      d.rows = min_idx(rows, part.y1 - y);
      finish_at(d.finish, e, c.y, b, y);
      idx x = 0;
      for (int i = first; x < c.y.width; ++i) {
        const idx count = (c.y.width - x) / sizes.pixels[i];
        if (count) sizes.run[i](d, x, count);
        x += count * sizes.pixels[i];
      }
      finish_rows(e, c.y, y, y + d.rows, b, b + 1);
    }
    pool_part(e.pools, c.y, part, b, b + 1);
  }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
