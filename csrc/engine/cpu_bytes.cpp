// SPDX-License-Identifier: Apache-2.0
// Products of bytes by int8 weights of one ISA.
#include "engine/kernels/low_ways.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr int kPack = 4;
using Products = ByteProducts;
using Tiles = LowWay<Products, kPack>;

static size_t panels_size(int in_channels, int out_channels, const Window& w) {
  return Tiles::block_size(in_channels, w) * static_cast<size_t>(ceil_div(out_channels, L));
}

static size_t packed_size(int in_channels, int out_channels, const Window& w) {
  return panels_size(in_channels, out_channels, w) + static_cast<size_t>(2 * ceil_div(out_channels, L) * L);
}

// Panels, then the scale and the total of each output channel.
static void pack_weights(float* packed, const float* w, int in_channels, int out_channels, const Window& window,
                         int panel) {
  const idx taps = static_cast<idx>(window.kh) * window.kw, outputs = ceil_div(out_channels, L) * L,
            each = in_channels * taps;
  float *scale = packed + panels_size(in_channels, out_channels, window), *total = scale + outputs;
  for (idx o = 0; o < outputs; ++o) {
    float most = 0.f;
    for (idx i = 0; o < out_channels && i < each; ++i) most = __builtin_fmaxf(most, __builtin_fabsf(w[o * each + i]));
    scale[o] = most > 0.f ? most / 127.f : 1.f, total[o] = 0.f;
  }
  Tiles::each_word(packed, in_channels, out_channels, window, panel, [&](char* to, idx apart, idx o, idx c, idx t) {
    for (idx lane = 0; lane < L; ++lane) {
      int8_t four[4] = {};
      for (idx i = 0; o + lane < out_channels && i < min_idx(kPack, in_channels - c); ++i) {
        const float v = w[((o + lane) * in_channels + c + i) * taps + t];
        four[i] = static_cast<int8_t>(__builtin_rintf(v / scale[o + lane]));
        total[o + lane] += four[i];
      }
      Products::put(to, apart, lane, four);
    }
  });
}

}  // namespace

const engine::LowTiles& engine_bytes() {
  static constexpr LowTiles tiles = low_tiles<Tiles>(Products::kOffset, packed_size, pack_weights);
  return tiles;
}

}  // namespace FF_ISA
}  // namespace ff
