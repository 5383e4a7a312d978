// SPDX-License-Identifier: Apache-2.0
// Register tiles of low precision: MR pixels × NR channel blocks, inputs broadcast by words. Sums go to memory and
// from there to `finish`, which is compiled once for all sizes: written out in each of 40 tiles, for each type of
// output, it took a compiler a minute.
#pragma once
#include "engine/kernels/low_kinds.h"

namespace ff {
namespace FF_ISA {
namespace {

// Sizes of tiles in pixels, widest first, ending with 1.
struct LowSizes {
  static constexpr int kMost = 7;
  int count, pixels[kMost];
  void (*run[kMost])(const LowRun& run, ptrdiff_t tiles);
};

// Step: bytes between pixels, if known when compiled; 0 if not.
template <class Products, int Pack, int MR, int NR, int Step>
static void low_tile(const LowRun& t, ptrdiff_t tiles) {
  constexpr idx kWords = L / Pack;
  const idx step = Step ? Step : t.pixel, words = ceil_div(t.channels, Pack);
  alignas(64) typename Products::Sum sums[NR][MR];
  for (idx tile = 0; tile < tiles; ++tile) {
    typename Products::Sum acc[MR][NR] = {};
    const char* block = t.x + tile * MR * step;
    const float* w = t.weights;
    for (idx c = 0; c < words; c += kWords, block += t.block) {
      const idx n = min_idx(kWords, words - c);
      const char* line = block;
      for (idx k = 0; k < t.kh; ++k, line += t.row) {
        const char* tap = line;
        for (idx l = 0; l < t.kw; ++l, tap += t.column) {
          const char* x = tap;
          for (idx q = 0; q < n; ++q, x += 4) {
            FF_UNROLL(4)
            for (int h = 0; h < Products::kVectors; ++h, w += NR * L) {
              decltype(Products::weights(w)) w_v[NR];
              FF_UNROLL(8)
              for (int j = 0; j < NR; ++j) w_v[j] = Products::weights(w + j * L);
              FF_UNROLL(16)
              for (int i = 0; i < MR; ++i) {
                const auto x_v = Products::operand(x + i * step, h);
                FF_UNROLL(8)
                for (int j = 0; j < NR; ++j) acc[i][j] = Products::add(acc[i][j], x_v, w_v[j]);
              }
            }
          }
        }
      }
    }
    FF_UNROLL(8)
    for (int j = 0; j < NR; ++j) {
      FF_UNROLL(16)
      for (int i = 0; i < MR; ++i) sums[j][i] = acc[i][j];
    }
    t.finish(t, sums, MR * L, MR, NR, t.at + tile * MR * L);
  }
}

template <class Products, int Pack, int NR, int Step, int... MR>
constexpr LowSizes low_sizes() {
  return {sizeof...(MR), {MR...}, {low_tile<Products, Pack, MR, NR, Step>...}};
}

// As PanelTiles of conv_tile.h: accumulators, a panel's weights and a factor share the registers.
template <class Products, int Pack, int Step, int NR>
constexpr LowSizes low_sizes_of() {
  if constexpr (kRegisters == 32) {
    if constexpr (Step == 0)
      return low_sizes<Products, Pack, NR, Step, 4, 1>();
    else if constexpr (NR == 1)
      return low_sizes<Products, Pack, NR, Step, 14, 7, 4, 2, 1>();
    else if constexpr (NR == 2)
      return low_sizes<Products, Pack, NR, Step, 12, 8, 7, 6, 4, 2, 1>();
    else if constexpr (NR == 3)
      return low_sizes<Products, Pack, NR, Step, 8, 7, 6, 4, 2, 1>();
    else if constexpr (NR == 4)
      return low_sizes<Products, Pack, NR, Step, 6, 5, 4, 3, 2, 1>();
    else
      return low_sizes<Products, Pack, NR, Step, 5, 4, 3, 2, 1>();
  } else {
    if constexpr (NR > 3)
      return {};
    else if constexpr (Step == 0)
      return low_sizes < Products, Pack, NR, Step, NR<3 ? 4 : 1, 1>();
    else if constexpr (NR == 1)
      return low_sizes<Products, Pack, NR, Step, 8, 4, 2, 1>();
    else if constexpr (NR == 2)
      return low_sizes<Products, Pack, NR, Step, 6, 4, 2, 1>();
    else
      return low_sizes<Products, Pack, NR, Step, 4, 2, 1>();
  }
}

constexpr int kLowPanel = kRegisters == 32 ? 5 : 3;

// Half cycles of a tile for one vector of weights a block, as tile_cost of conv_tile.h.
FF_INLINE float low_cost(int pixels, int panel, int latency) {
  const float products = static_cast<float>(pixels * panel), loads = 1.35f * static_cast<float>(pixels + panel),
              chain = static_cast<float>(latency), bound = products > loads ? products : loads;
  return (bound > chain ? bound : chain) + 0.12f * static_cast<float>(pixels + panel);
}

FF_INLINE float low_cost(const LowSizes& s, int panel, int latency, idx pixels) {
  float least = 0;
  for (int first = 0; first < s.count; ++first) {
    float cost = 0;
    idx left = pixels;
    for (int i = first; i < s.count; ++i)
      cost += static_cast<float>(left / s.pixels[i]) * low_cost(s.pixels[i], panel, latency), left %= s.pixels[i];
    if (first == 0 || cost < least) least = cost;
  }
  return least;
}

// Products in vector registers. Panels are packed in order of channel block of outputs, channel block of inputs, tap,
// word.
template <class Products, int Pack>
struct RegisterTiles {
  static constexpr int kStep = 4 * static_cast<int>(L) / Pack;
  static constexpr const char* kWay = Products::kWay;
  static constexpr decltype(LowTiles::enter) enter = nullptr;
  static constexpr decltype(LowTiles::leave) leave = nullptr;

  // By whether pixels stand one behind the other, and by channel blocks of the panel.
  static const LowSizes& sizes(bool near, int blocks) {
    static constexpr LowSizes kSizes[2][5] = {
        {low_sizes_of<Products, Pack, 0, 1>(), low_sizes_of<Products, Pack, 0, 2>(),
         low_sizes_of<Products, Pack, 0, 3>(), low_sizes_of<Products, Pack, 0, 4>(),
         low_sizes_of<Products, Pack, 0, 5>()},
        {low_sizes_of<Products, Pack, kStep, 1>(), low_sizes_of<Products, Pack, kStep, 2>(),
         low_sizes_of<Products, Pack, kStep, 3>(), low_sizes_of<Products, Pack, kStep, 4>(),
         low_sizes_of<Products, Pack, kStep, 5>()}};
    return kSizes[near][blocks - 1];
  }

  // The widest tiles first.
  static void run(const LowRun& whole, ptrdiff_t pixels, int blocks) {
    const LowSizes& s = sizes(whole.pixel == kStep, blocks);
    LowRun run = whole;
    for (int i = 0; pixels > 0; ++i) {
      const idx count = pixels / s.pixels[i], done = count * s.pixels[i];
      if (!count) continue;
      s.run[i](run, count);
      run.x += done * run.pixel, run.at += done * L;
      pixels -= done;
    }
  }

  // Channel blocks of a panel for which a row of pixels takes the least time.
  static int panel(int, int out_channels, int out_height, int out_width, const Window& w) {
    const idx blocks = ceil_div(out_channels, L);
    const bool point = w.kh * w.kw == 1 && w.sw == 1;
    const idx pixels = point ? static_cast<idx>(out_height) * out_width : out_width;
    const auto cost_of = [&](int panel) {
      return low_cost(sizes(w.sw == 1, panel), panel, Products::kLatency, pixels);
    };
    int best = 1;
    float least = 0;
    for (int panel = 1; panel <= kLowPanel; ++panel) {
      const int rest = static_cast<int>(blocks % panel);
      float cost = static_cast<float>(blocks / panel) * cost_of(panel);
      if (rest) cost += cost_of(rest);
      if (panel == 1 || cost < least) best = panel, least = cost;
    }
    return best;
  }

  static size_t block_size(int in_channels, const Window& w) {
    return static_cast<size_t>(L * ceil_div(in_channels, Pack) * w.kh * w.kw * Products::kVectors);
  }

  // The weights of each word in order: body(place of the first vector, bytes between vectors, first of the outputs,
  // first input channel, tap).
  template <class Body>
  static void each_word(float* packed, int in_channels, int out_channels, const Window& window, int panel,
                        const Body& body) {
    const idx blocks = ceil_div(out_channels, L), taps = static_cast<idx>(window.kh) * window.kw;
    for (idx b = 0; b < blocks; b += panel) {
      const idx width = min_idx(panel, blocks - b) * L;
      for (idx c = 0; c < in_channels; c += L)
        for (idx t = 0; t < taps; ++t)
          for (idx q = c; q < min_idx(c + L, in_channels); q += Pack, packed += Products::kVectors * width)
            for (idx j = 0; j < width; j += L) body(reinterpret_cast<char*>(packed + j), width * 4, b * L + j, q, t);
    }
  }
};

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
