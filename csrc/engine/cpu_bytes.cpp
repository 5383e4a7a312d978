// SPDX-License-Identifier: Apache-2.0
// Products of bytes by int8 weights of one ISA.
#include "engine/kernels/low_tile.h"

namespace ff {
namespace FF_ISA {
namespace {

using Products = ByteProducts;
constexpr int kPack = 4;

static size_t packed_size(int in_channels, int out_channels, const Window& w) {
  return static_cast<size_t>(low_floats(kPack, Products::kVectors, in_channels, out_channels, w) +
                             2 * ceil_div(out_channels, L) * L);
}

// Panels, then the scale and the total of each output channel.
static void pack_weights(float* packed, const float* w, int in_channels, int out_channels, const Window& window,
                         int panel) {
  const idx taps = static_cast<idx>(window.kh) * window.kw, outputs = ceil_div(out_channels, L) * L,
            each = in_channels * taps;
  float *scale = packed + low_floats(kPack, Products::kVectors, in_channels, out_channels, window),
        *total = scale + outputs;
  for (idx o = 0; o < outputs; ++o) {
    float most = 0.f;
    for (idx i = 0; o < out_channels && i < each; ++i) most = __builtin_fmaxf(most, __builtin_fabsf(w[o * each + i]));
    scale[o] = most > 0.f ? most / 127.f : 1.f, total[o] = 0.f;
  }
  each_word<kPack, Products::kVectors>(
      packed, in_channels, out_channels, window, panel, [&](char* to, idx apart, idx o, idx c, idx t) {
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

static int panel_of(int, int out_channels, int out_height, int out_width, const Window& w) {
  return low_panel(engine_bytes(), Products::kLatency, out_channels, out_height, out_width, w);
}

}  // namespace

const engine::LowTiles& engine_bytes() {
  static const LowTiles tiles = low_tiles<Products, kPack>(Products::kOffset, panel_of, packed_size, pack_weights);
  return tiles;
}

}  // namespace FF_ISA
}  // namespace ff
