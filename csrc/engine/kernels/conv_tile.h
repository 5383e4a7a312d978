// SPDX-License-Identifier: Apache-2.0
// Register tiles of dense convolution: MR pixels × NR channel blocks of sums over taps and input channels, weights from
// packed panels [block][tap][channel][NR·L], inputs broadcast. One template serves blocked input (pixels L apart),
// planes (pixels 1 or 2 apart) and any stride.
#pragma once
#include "engine/kernels/pools.h"

namespace ff {
namespace FF_ISA {
namespace {

// A run of tiles along pixels. (Pixel p, tap (k, l), channel c) of the input stands at
// x[p·pixel + k·row + l·column + c / L·block + c % L·channel].
struct ConvTiles {
  const float* x;
  idx pixel, row, column, block, channel;
  idx kh, kw, channels;
  const float *weights, *bias;
  idx at;  // elements from the start of the row to the first tile's output
  Finish finish;
};

// Step: what `pixel` is, if known when compiled; 0 if not. Point: the window is 1×1.
template <int MR, int NR, int Step, bool Point>
FF_NOINLINE void conv_tiles(const ConvTiles& t, idx tiles) {
  const idx kh = Point ? 1 : t.kh, kw = Point ? 1 : t.kw;
  const idx step = Step ? Step : t.pixel, in_channel = Step == L ? 1 : t.channel;
  for (idx tile = 0; tile < tiles; ++tile) {
    vecf acc[MR][NR];
    FF_UNROLL(8)
    for (int j = 0; j < NR; ++j) {
      FF_UNROLL(16)
      for (int i = 0; i < MR; ++i) acc[i][j] = load(t.bias + j * L);
    }
    const float *block = t.x + tile * MR * step, *w = t.weights;
    for (idx c = 0; c < t.channels; c += L, block += t.block) {
      const idx n = min_idx(L, t.channels - c);
      const float* line = block;
      for (idx k = 0; k < kh; ++k, line += t.row) {
        const float* tap = line;
        for (idx l = 0; l < kw; ++l, tap += t.column) {
          const float* a = tap;
          for (idx q = 0; q < n; ++q, a += in_channel, w += NR * L) {
            vecf w_v[NR];
            FF_UNROLL(8)
            for (int j = 0; j < NR; ++j) w_v[j] = load(w + j * L);
            FF_UNROLL(16)
            for (int i = 0; i < MR; ++i) {
              const vecf a_v = splat(a[i * step]);
              FF_UNROLL(8)
              for (int j = 0; j < NR; ++j) acc[i][j] = fma(a_v, w_v[j], acc[i][j]);
            }
          }
        }
      }
    }
    finish_tile<MR, NR>(acc, t.finish, t.at + tile * MR * L);
  }
}

using TileRun = void (*)(const ConvTiles&, idx);

// Sizes of tiles, widest first, ending with 1 so that any number of pixels is a sum of sizes.
struct TileSizes {
  static constexpr int kMost = 7;
  int count, pixels[kMost];
  TileRun run[kMost];
};

template <int NR, int Step, bool Point, int... MR>
constexpr TileSizes sizes() {
  return {sizeof...(MR), {MR...}, {conv_tiles<MR, NR, Step, Point>...}};
}

// The widest panel, in channel blocks.
constexpr int kMaxPanel = kRegisters == 32 ? 5 : 3;

// Accumulators, a panel's weights and a broadcast share the registers. Small tiles lose nothing: the end of one runs
// beside the start of the next. Where the input's pixels are any distance apart, each needs a pointer.
template <int Step, bool Point>
struct PanelTiles {
  static const TileSizes& of(int panel) {
    if constexpr (Step == 0) {
      constexpr int many_registers = kRegisters == 32 ? 4 : 1;
      static constexpr TileSizes all[] = {
          sizes<1, 0, false, 4, 1>(), sizes<2, 0, false, 4, 1>(), sizes<3, 0, false, many_registers, 1>(),
          sizes<4, 0, false, many_registers, 1>(), sizes<5, 0, false, many_registers, 1>()};
      return all[panel - 1];
    } else if constexpr (kRegisters == 32) {
      static constexpr TileSizes all[] = {
          sizes<1, Step, Point, 14, 12, 8, 7, 4, 2, 1>(), sizes<2, Step, Point, 12, 8, 7, 6, 4, 2, 1>(),
          sizes<3, Step, Point, 9, 7, 6, 4, 2, 1>(), sizes<4, Step, Point, Point ? 6 : 5, 4, 3, 2, 1>(),
          sizes<5, Step, Point, 5, 4, 3, 2, 1>()};
      return all[panel - 1];
    } else {
      static constexpr TileSizes all[] = {sizes<1, Step, Point, 8, 4, 2, 1>(), sizes<2, Step, Point, 6, 4, 2, 1>(),
                                          sizes<3, Step, Point, 4, 2, 1>()};
      return all[panel - 1];
    }
  }
};

// Predicted time of a tile for one channel, in half cycles of a core that starts two fma and two loads a cycle. The fma
// bound it, or the loads (a broadcast costs a third more), or the latency of a chain; and loads beside fma cost a
// little. Where registers are short, each fma broadcasts for itself.
FF_INLINE float tile_cost(int pixels, int panel) {
  constexpr float kChain = 8;
  const int products = pixels * panel, broadcasts = products + panel < kRegisters ? pixels : products;
  const float fmas = static_cast<float>(products), loads = 1.35f * static_cast<float>(pixels + panel);
  const float bound = fmas > loads ? fmas : loads;
  return (bound > kChain ? bound : kChain) + 0.12f * static_cast<float>(broadcasts + panel);
}

// Predicted time of `pixels` pixels when tiles are taken from size `first` on.
FF_INLINE float tiles_cost(const TileSizes& s, int panel, int first, idx pixels) {
  float cost = 0;
  for (int i = first; i < s.count; ++i) {
    cost += static_cast<float>(pixels / s.pixels[i]) * tile_cost(s.pixels[i], panel);
    pixels %= s.pixels[i];
  }
  return cost;
}

FF_INLINE int best_first(const TileSizes& s, int panel, idx pixels) {
  int best = 0;
  for (int i = 1; i < s.count; ++i)
    if (tiles_cost(s, panel, i, pixels) < tiles_cost(s, panel, best, pixels)) best = i;
  return best;
}

// Channel blocks of a panel for which `rows` rows of `pixels` pixels take the least time.
template <int Step, bool Point>
FF_INLINE int best_panel(idx blocks, idx pixels) {
  int best = 1;
  float least = 0;
  for (int panel = 1; panel <= kMaxPanel; ++panel) {
    const int rest = static_cast<int>(blocks % panel);
    const TileSizes &s = PanelTiles<Step, Point>::of(panel), &last = PanelTiles<Step, Point>::of(rest ? rest : 1);
    float cost = static_cast<float>(blocks / panel) * tiles_cost(s, panel, best_first(s, panel, pixels), pixels);
    if (rest) cost += tiles_cost(last, rest, best_first(last, rest, pixels), pixels);
    if (panel == 1 || cost < least) best = panel, least = cost;
  }
  return best;
}

// Runs tiles over `pixels` pixels from the one that `t` points at.
FF_INLINE void run_tiles(const TileSizes& s, int first, ConvTiles t, idx pixels) {
  for (int i = first; pixels > 0; ++i) {
    const idx count = pixels / s.pixels[i], done = count * s.pixels[i];
    if (!count) continue;
    s.run[i](t, count);
    t.x += done * t.pixel, t.at += done * L;
    pixels -= done;
  }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
