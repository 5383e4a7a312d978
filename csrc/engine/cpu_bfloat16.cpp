// SPDX-License-Identifier: Apache-2.0
// Products of bfloat16 of one ISA.
#include "engine/kernels/low_tile.h"

namespace ff {
namespace FF_ISA {
namespace {

using Products = Bf16Products;
constexpr int kPack = 2;

static size_t packed_size(int in_channels, int out_channels, const Window& w) {
  return static_cast<size_t>(low_floats(kPack, Products::kVectors, in_channels, out_channels, w));
}

static void pack_weights(float* packed, const float* w, int in_channels, int out_channels, const Window& window,
                         int panel) {
  const idx taps = static_cast<idx>(window.kh) * window.kw;
  each_word<kPack, Products::kVectors>(
      packed, in_channels, out_channels, window, panel, [&](char* to, idx apart, idx o, idx c, idx t) {
        for (idx lane = 0; lane < L; ++lane) {
          float pair[2] = {};
          for (idx i = 0; o + lane < out_channels && i < min_idx(kPack, in_channels - c); ++i)
            pair[i] = w[((o + lane) * in_channels + c + i) * taps + t];
          Products::put(to, apart, lane, pair);
        }
      });
}

static int panel_of(int, int out_channels, int out_height, int out_width, const Window& w) {
  return low_panel(engine_bfloat16(), Products::kLatency, out_channels, out_height, out_width, w);
}

}  // namespace

const engine::LowTiles& engine_bfloat16() {
  static const LowTiles tiles = low_tiles<Products, kPack>(0, panel_of, packed_size, pack_weights);
  return tiles;
}

}  // namespace FF_ISA
}  // namespace ff
