// SPDX-License-Identifier: Apache-2.0
// Dense 3×3 convolution with stride 1 by Winograd's minimal filtering F(4×4, 3×3), whose transforms are those of
// primitives/winograd.h: tiles of 4×4 outputs from 6×6 inputs with 36 products a channel in place of 144, as 36
// products of matrices, one for each place of a transformed tile.
#pragma once
#include "engine/kernels/conv.h"
#include "primitives/winograd.h"

namespace ff {
namespace FF_ISA {
namespace {

// u = G·g·Gᵀ of one filter.
FF_INLINE void winograd_filter(const float* g, double (&u)[kTilePlaces]) {
  const auto& G = kFilterTransform;
  double half[6][3];
  for (int i = 0; i < 6; ++i)
    for (int l = 0; l < 3; ++l) half[i][l] = G[i][0] * g[l] + G[i][1] * g[3 + l] + G[i][2] * g[6 + l];
  for (int i = 0; i < 6; ++i)
    for (int j = 0; j < 6; ++j) u[i * 6 + j] = half[i][0] * G[j][0] + half[i][1] * G[j][1] + half[i][2] * G[j][2];
}

FF_INLINE idx winograd_place(int in_channels, int out_channels) { return blocks_of(out_channels) * L * in_channels; }

static size_t winograd_packed(int in_channels, int out_channels) {
  return static_cast<size_t>(kTilePlaces * winograd_place(in_channels, out_channels));
}

// For each place the panels of a 1×1 convolution.
static void pack_winograd(float* packed, const float* w, int in_channels, int out_channels, int panel) {
  const idx blocks = blocks_of(out_channels), place = winograd_place(in_channels, out_channels);
  for (idx b = 0; b < blocks; b += panel) {
    const idx width = min_idx(panel, blocks - b) * L;
    for (idx c = 0; c < in_channels; ++c)
      for (idx j = 0; j < width; ++j) {
        const idx o = b * L + j;
        double u[kTilePlaces] = {};
        if (o < out_channels) winograd_filter(w + (o * in_channels + c) * 9, u);
        float* to = packed + b * L * in_channels + c * width + j;
        for (idx p = 0; p < kTilePlaces; ++p) to[p * place] = static_cast<float>(u[p]);
      }
  }
}

// Tiles of some rows of tiles at once: as many as fill the widest register tile twice.
struct WinogradGroup {
  idx across, down, tiles;         // tiles in a row, rows of them, both
  idx in_place, out_place;         // floats of a place of the transformed input and of the products
  idx in_blocks, out_blocks;
};

FF_INLINE WinogradGroup winograd_group(const Conv& c) {
  WinogradGroup g;
  g.across = ceil_div(c.y.width, kTileOut);
  g.down = min_idx(max_idx(1, 18 / g.across), ceil_div(c.y.height, kTileOut));
  g.tiles = g.across * g.down;
  g.in_blocks = blocks_of(c.x.channels), g.out_blocks = blocks_of(c.y.channels);
  // A line more than needed: places must not fall into the same few lines of L1.
  g.in_place = (g.in_blocks * g.tiles + 1) * L, g.out_place = (g.out_blocks * g.tiles + 1) * L;
  return g;
}

static size_t winograd_scratch(const Conv& c) {
  const WinogradGroup g = winograd_group(c);
  return static_cast<size_t>(kTilePlaces * (g.in_place + g.out_place));
}

static int winograd_panel(int, int out_channels, int out_height, int out_width) {
  Conv c = {};
  c.y.height = out_height, c.y.width = out_width;
  return best_panel<L, true>(blocks_of(out_channels), winograd_group(c).tiles);
}

// Transforms the 6×6 pixels at x, of which `rows` × `columns` exist; place p goes to v + p·place.
template <bool Edge>
FF_NOINLINE void winograd_tile_in(const float* x, idx x_row, idx rows, idx columns, float* v, idx place) {
  transform_tile<float, InputTransform>(
      [&](int i, int j) { return !Edge || (i < rows && j < columns) ? load(x + i * x_row + j * L) : vecf{}; },
      [&](int i, int j, vecf value) { store(v + (i * kTileIn + j) * place, value); });
}

// The 4×4 outputs of a tile from its products, of which `rows` × `columns` are stored from element `at` of their rows
// on.
FF_NOINLINE void winograd_tile_out(const float* m, idx place, vecf bias, const Finish (&f)[4], idx at, idx rows,
                                   idx columns) {
  vecf half[4][6];
  FF_UNROLL(6)
  for (int j = 0; j < 6; ++j) {
    vecf d[6], t[4];
    FF_UNROLL(6)
    for (int i = 0; i < 6; ++i) d[i] = load(m + (i * 6 + j) * place);
    OutputTransform::apply<float>(d, t);
    FF_UNROLL(4)
    for (int i = 0; i < 4; ++i) half[i][j] = t[i];
  }
  FF_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    if (i >= rows) break;
    vecf t[4], out[4][1];
    OutputTransform::apply<float>(half[i], t);
    FF_UNROLL(4)
    for (int j = 0; j < 4; ++j) out[j][0] = t[j] + bias;
    if (columns == 4) {
      finish_tile<4, 1>(out, f[i], at);
      continue;
    }
    for (idx j = 0; j < columns; ++j) {
      vecf one[1][1] = {{j == 0 ? out[0][0] : j == 1 ? out[1][0] : out[2][0]}};
      finish_tile<1, 1>(one, f[i], at + j * L);
    }
  }
}

// Rows [y0, y1) of tiles.
FF_INLINE void winograd_inputs(const Conv& c, const WinogradGroup& g, idx y0, idx y1, float* v) {
  for (idx b = 0; b < g.in_blocks; ++b)
    for (idx ty = y0; ty < y1; ++ty)
      for (idx tx = 0; tx < g.across; ++tx) {
        const float* x = c.x.data + b * c.x.block + (ty * 4 - c.window.top) * c.x.row + (tx * 4 - c.window.left) * L;
        const idx rows = c.y.height - ty * 4 + 2, columns = c.y.width - tx * 4 + 2;
        float* to = v + (b * g.tiles + (ty - y0) * g.across + tx) * L;
        rows < 6 || columns < 6 ? winograd_tile_in<true>(x, c.x.row, rows, columns, to, g.in_place)
                                : winograd_tile_in<false>(x, c.x.row, rows, columns, to, g.in_place);
      }
}

FF_INLINE void winograd_products(const Conv& c, const WinogradGroup& g, idx tiles, idx b0, idx b1, const float* v,
                                 float* m) {
  alignas(64) static const float zeros[kMaxPanel * L] = {};
  const Map products{m, c.y.channels, 1, static_cast<int>(tiles), g.tiles * L, g.tiles * L};
  ConvTiles t{nullptr, L, 0, L, g.tiles * L, 1, 1, 1, c.x.channels, nullptr, zeros, 0, finish_of({}, products)};
  const idx place = winograd_place(c.x.channels, c.y.channels);
  for (idx p = 0; p < kTilePlaces; ++p)
    for (idx b = b0; b < b1; b += c.panel) {
      const int panel = static_cast<int>(min_idx(c.panel, b1 - b));
      const TileSizes& s = PanelTiles<L, true>::of(panel);
      t.x = v + p * g.in_place, t.finish.y = m + p * g.out_place + b * g.tiles * L;
      t.weights = c.weights + p * place + b * L * c.x.channels;
      run_tiles(s, best_first(s, panel, tiles), t, tiles);
    }
}

FF_INLINE void winograd_outputs(const Conv& c, const WinogradGroup& g, idx y0, idx y1, idx b0, idx b1, const float* m) {
  const Epilogue& e = c.epilogue;
  for (idx b = b0; b < b1; ++b)
    for (idx ty = y0; ty < y1; ++ty) {
      const idx rows = min_idx(4, c.y.height - ty * 4);
      Finish f[4];
      for (idx i = 0; i < 4; ++i) f[i] = finish_of(e, c.y), finish_at(f[i], e, c.y, b, ty * 4 + i);
      for (idx tx = 0; tx < g.across; ++tx)
        winograd_tile_out(m + (b * g.tiles + (ty - y0) * g.across + tx) * L, g.out_place, load(e.bias + b * L), f,
                          tx * 4 * L, rows, min_idx(4, c.y.width - tx * 4));
    }
}

static void winograd(const Conv& c, float* scratch, Part part) {
  FF_ASSERT(part.y0 % kTileOut == 0 && (part.y1 % kTileOut == 0 || part.y1 == c.y.height));
  const WinogradGroup g = winograd_group(c);
  float *v = scratch, *m = scratch + kTilePlaces * g.in_place;
  const idx end = ceil_div(part.y1, kTileOut);
  for (idx y0 = part.y0 / kTileOut; y0 < end; y0 += g.down) {
    const idx y1 = min_idx(end, y0 + g.down);
    winograd_inputs(c, g, y0, y1, v);
    winograd_products(c, g, (y1 - y0) * g.across, part.b0, part.b1, v, m);
    winograd_outputs(c, g, y0, y1, part.b0, part.b1, m);
    finish_rows(c.epilogue, c.y, y0 * kTileOut, min_idx(y1 * kTileOut, part.y1), part.b0, part.b1);
  }
  pool_part(c.epilogue.pools, c.y, part, part.b0, part.b1);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
