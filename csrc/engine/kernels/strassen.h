// SPDX-License-Identifier: Apache-2.0
// 1×1 convolution of many channels with seven products of half sizes in place of eight, in Winograd's form of
// Strassen's algorithm (Winograd, 1971; 15 additions). Halves are the first and second pixels of a band of rows, the
// first and second input channels, and the first and second blocks of each panel of outputs. One level: with K and N
// channels the additions cost about as much as 2·L/5·(1/K + 1/N) of the products, an eighth of which is saved. A result
// is off by some three times as much as conv's.
#pragma once
#include "engine/kernels/conv.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr int kStrassenProducts = 7, kStrassenSums = 4;
constexpr idx kStrassenPixels = 256;  // a band's sums and products then stay in the second-level cache
constexpr idx kStrassenLeastPixels = 64;  // below, tiles of half a band would wait for weights
constexpr idx kStrassenLeast = 128;  // 1 / (1/K + 1/N) from which it pays

// Rows of a band: as many as divide the height, with an even number of pixels; 0: there are none.
static int strassen_band(int height, int width) {
  for (int rows = height; rows > 0; --rows) {
    const idx pixels = static_cast<idx>(rows) * width;
    if (height % rows == 0 && pixels % 2 == 0 && pixels <= kStrassenPixels)
      return pixels < kStrassenLeastPixels ? 0 : rows;
  }
  return 0;
}

// Blocks of a panel, an even number; 0: conv is as fast, or the sizes do not halve.
static int strassen_panel(int in_channels, int out_channels, int height, int width) {
  const idx in = in_channels, out = out_channels, blocks = blocks_of(out),
            half = static_cast<idx>(strassen_band(height, width)) * width / 2;
  if (!half || in % (2 * L) || out % (2 * L) || in * out < kStrassenLeast * (in + out)) return 0;
  int best = 0;
  float least = 0;
  for (int panel = 1; panel <= kMaxPanel; ++panel) {
    if (blocks % (2 * panel)) continue;
    const TileSizes& s = PanelTiles<L, true>::of(panel);
    const float cost = static_cast<float>(blocks / panel) * tiles_cost(s, panel, best_first(s, panel, half), half);
    if (!best || cost < least) best = 2 * panel, least = cost;
  }
  return best;
}

static size_t strassen_packed(int in_channels, int out_channels) {
  return static_cast<size_t>(kStrassenProducts) * static_cast<size_t>(in_channels / 2) *
         static_cast<size_t>(out_channels / 2);
}

// For each panel the seven factors, each [half of the inputs][half of the panel]. By chunks, turned around first: rows
// of w that lie 2 KiB apart share a few lines of L1.
static void pack_strassen(float* packed, const float* w, int in_channels, int out_channels, int panel) {
  constexpr idx kChunk = 16;
  const idx half = in_channels / 2, width = static_cast<idx>(panel) / 2 * L, size = half * width;
  alignas(64) float quarters[4][kChunk][kMaxPanel * L];
  for (idx o = 0; o < out_channels; o += 2 * width, packed += kStrassenProducts * size)
    for (idx c0 = 0; c0 < half; c0 += kChunk) {
      const idx n = min_idx(kChunk, half - c0);
      for (idx q = 0; q < 4; ++q) {
        const float* from = w + (o + q / 2 * width) * in_channels + q % 2 * half + c0;
        for (idx j = 0; j < width; ++j)
          for (idx c = 0; c < n; ++c) quarters[q][c][j] = from[j * in_channels + c];
      }
      for (idx c = 0; c < n; ++c) {
        float* to = packed + (c0 + c) * width;
        for (idx j = 0; j < width; ++j) {
          const float w11 = quarters[0][c][j], w21 = quarters[1][c][j], w12 = quarters[2][c][j],
                      w22 = quarters[3][c][j];
          const float t1 = w12 - w11, t2 = w22 - t1;
          to[j] = w11, to[size + j] = w21, to[2 * size + j] = w22, to[3 * size + j] = t2 - w21;
          to[4 * size + j] = t1, to[5 * size + j] = t2, to[6 * size + j] = w22 - w12;
        }
      }
    }
}

static size_t strassen_scratch(const Conv& c) {
  const idx half = static_cast<idx>(strassen_band(c.y.height, c.y.width)) * c.y.width / 2;
  return static_cast<size_t>(half * (kStrassenSums * c.x.channels / 2 + kStrassenProducts * c.panel / 2 * L));
}

// The sums of quarters that are factors, each [half of the blocks][half of the pixels][L].
FF_NOINLINE void strassen_sums(const float* x, idx x_block, idx blocks, idx pixels, float* s) {
  const idx size = blocks * pixels * L;
  for (idx b = 0; b < blocks; ++b) {
    const float *x1 = x + b * x_block, *x2 = x1 + blocks * x_block;
    for (idx i = 0; i < pixels * L; i += L, s += L) {
      const vecf x11 = load(x1 + i), x12 = load(x2 + i), x21 = load(x1 + pixels * L + i),
                 x22 = load(x2 + pixels * L + i);
      const vecf s1 = x21 + x22, s2 = s1 - x11;
      store(s, s1), store(s + size, s2), store(s + 2 * size, x11 - x21), store(s + 3 * size, x12 - s2);
    }
  }
}

// The four quarters of a band, from row y0 on, for `panel` blocks from b on, from their products.
FF_NOINLINE void strassen_outputs(const Conv& c, idx y0, idx b, idx panel, idx pixels, const float* m) {
  const idx size = panel / 2 * pixels * L, width = c.y.width;
  const Activation act = activation_of(in_registers(c.epilogue) ? c.epilogue.act : Act::none);
  for (idx j = 0; j < panel / 2; ++j) {
    const idx first = b + j, second = first + panel / 2;
    const vecf bias1 = load(c.epilogue.bias + first * L), bias2 = load(c.epilogue.bias + second * L);
    const auto row = [&](idx block, idx y) { return c.y.data + block * c.y.block + (y0 + y) * c.y.row; };
    idx top = 0, bottom = pixels / width, left = 0, right = pixels % width;
    for (idx i = 0; i < pixels; ++i, m += L) {
      const vecf m1 = load(m), u2 = m1 + load(m + 5 * size), u3 = u2 + load(m + 6 * size), m5 = load(m + 4 * size);
      vecf y[4][1] = {{m1 + load(m + size) + bias1},
                      {u2 + m5 + load(m + 2 * size) + bias2},
                      {u3 - load(m + 3 * size) + bias1},
                      {u3 + m5 + bias2}};
      activate_tile<4, 1>(y, act);
      store(row(first, top) + left * L, y[0][0]), store(row(second, top) + left * L, y[1][0]);
      store(row(first, bottom) + right * L, y[2][0]), store(row(second, bottom) + right * L, y[3][0]);
      if (++left == width) left = 0, ++top;
      if (++right == width) right = 0, ++bottom;
    }
  }
}

static void strassen(const Conv& c, float* scratch, Part part) {
  const idx band = strassen_band(c.y.height, c.y.width), pixels = band * c.y.width / 2,
            blocks = blocks_of(c.x.channels) / 2;
  const idx size = blocks * pixels * L, panel = c.panel / 2, place = panel * pixels * L,
            weights = blocks * L * panel * L;
  FF_ASSERT(band && part.y0 % band == 0 && part.y1 % band == 0 && part.b0 % c.panel == 0 && part.b1 % c.panel == 0);
  FF_ASSERT(c.x.row == c.x.width * L && !c.epilogue.residual.data);
  alignas(64) static const float zeros[kMaxPanel * L] = {};
  const Map products{nullptr, static_cast<int>(panel * L), 1, static_cast<int>(pixels), pixels * L, pixels * L};
  float* m = scratch + kStrassenSums * size;
  const TileSizes& s = PanelTiles<L, true>::of(static_cast<int>(panel));
  const int first = best_first(s, static_cast<int>(panel), pixels);
  for (idx y = part.y0; y < part.y1; y += band) {
    const float *x = c.x.data + y * c.x.row, *x12 = x + blocks * c.x.block, *x22 = x12 + pixels * L;
    strassen_sums(x, c.x.block, blocks, pixels, scratch);
    const float* const factors[] = {x, x12, scratch + 3 * size, x22, scratch, scratch + size, scratch + 2 * size};
    for (idx b = part.b0; b < part.b1; b += c.panel) {
      ConvTiles t{nullptr, L, 0, L, 0, 1, 1, 1, c.x.channels / 2, nullptr, zeros, 0, finish_of({}, products)};
      t.weights = c.weights + b / c.panel * kStrassenProducts * weights;
      for (int p = 0; p < kStrassenProducts; ++p, t.weights += weights) {
        const bool own = p == 0 || p == 1 || p == 3;  // a quarter of x itself
        t.x = factors[p], t.block = own ? c.x.block : pixels * L, t.finish.y = m + p * place;
        run_tiles(s, first, t, pixels);
      }
      strassen_outputs(c, y, b, c.panel, pixels, m);
      finish_rows(c.epilogue, c.y, y, y + band, b, b + c.panel);
    }
  }
  pool_part(c.epilogue.pools, c.y, part, part.b0, part.b1);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
