// SPDX-License-Identifier: Apache-2.0
// Products of bfloat16 of one ISA.
#include "engine/kernels/low_ways.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr int kPack = 2;
using Products = Bf16Products;
using Tiles = LowWay<Products, kPack>;

static size_t packed_size(int in_channels, int out_channels, const Window& w) {
  return Tiles::block_size(in_channels, w) * static_cast<size_t>(ceil_div(out_channels, L));
}

static void pack_weights(float* packed, const float* w, int in_channels, int out_channels, const Window& window,
                         int panel) {
  const idx taps = static_cast<idx>(window.kh) * window.kw;
  Tiles::each_word(packed, in_channels, out_channels, window, panel, [&](char* to, idx apart, idx o, idx c, idx t) {
    for (idx lane = 0; lane < L; ++lane) {
      float pair[2] = {};
      for (idx i = 0; o + lane < out_channels && i < min_idx(kPack, in_channels - c); ++i)
        pair[i] = w[((o + lane) * in_channels + c + i) * taps + t];
      Products::put(to, apart, lane, pair);
    }
  });
}

}  // namespace

const engine::LowTiles& engine_bfloat16() {
  static constexpr LowTiles tiles = low_tiles<Tiles>(0, packed_size, pack_weights);
  return tiles;
}

}  // namespace FF_ISA
}  // namespace ff
