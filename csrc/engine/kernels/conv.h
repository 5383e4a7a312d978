// SPDX-License-Identifier: Apache-2.0
// Dense convolution on blocked maps: 1×1 (a product of matrices) and any other window, by the tiles of conv_tile.h.
#pragma once
#include "engine/kernels/conv_tile.h"

namespace ff {
namespace FF_ISA {
namespace {

FF_INLINE idx taps_of(const Window& w) { return static_cast<idx>(w.kh) * w.kw; }

static size_t conv_packed(int in_channels, int out_channels, const Window& w) {
  return static_cast<size_t>(blocks_of(out_channels) * L * in_channels * taps_of(w));
}

// Panels of `panel` channel blocks (the last may have fewer), each [block of inputs][tap][input][output].
static void pack_conv(float* packed, const float* w, int in_channels, int out_channels, const Window& window,
                      int panel) {
  const idx taps = taps_of(window), blocks = blocks_of(out_channels);
  for (idx b = 0; b < blocks; b += panel) {
    const idx width = min_idx(panel, blocks - b) * L;
    for (idx c = 0; c < in_channels; c += L)
      for (idx t = 0; t < taps; ++t)
        for (idx q = c; q < min_idx(c + L, in_channels); ++q)
          for (idx j = 0; j < width; ++j) {
            const idx o = b * L + j;
            *packed++ = o < out_channels ? w[(o * in_channels + q) * taps + t] : 0.f;
          }
  }
}

static int conv_panel(int, int out_channels, int out_height, int out_width, const Window& w) {
  const idx blocks = blocks_of(out_channels);
  if (w.sw != 1) return best_panel<0, false>(blocks, out_width);
  if (taps_of(w) > 1) return best_panel<L, false>(blocks, out_width);
  return best_panel<L, true>(blocks, static_cast<idx>(out_height) * out_width);
}

// Rows of the part as one run of pixels, where nothing lies between them.
FF_INLINE bool is_flat(const Conv& c) {
  const idx line = c.y.width * L;
  return taps_of(c.window) == 1 && c.window.sh == 1 && c.window.sw == 1 && !c.window.top && !c.window.left &&
         c.x.width == c.y.width && c.x.row == line && c.y.row == line &&
         (!c.epilogue.residual.data || c.epilogue.residual.row == line);
}

template <int Step, bool Point>
FF_NOINLINE void conv_part(const Conv& c, Part part) {
  const Window& w = c.window;
  const Epilogue& e = c.epilogue;
  const idx rows = is_flat(c) ? rows_to_finish(e, c.y, part.y1 - part.y0) : 1, pixels = rows * c.y.width;
  ConvTiles t{nullptr,      w.sw * L, w.dh * c.x.row, w.dw * L, c.x.block,        1, w.kh, w.kw,
              c.x.channels, nullptr,  nullptr,        0,        finish_of(e, c.y)};
  const float* x = c.x.data - w.top * c.x.row - w.left * L;
  for (idx b = part.b0; b < part.b1; b += c.panel) {
    const int panel = static_cast<int>(min_idx(c.panel, part.b1 - b));
    const TileSizes& s = PanelTiles<Step, Point>::of(panel);
    const int first = best_first(s, panel, pixels);
    t.weights = c.weights + b * L * c.x.channels * taps_of(w);
    t.bias = e.bias + b * L;
    for (idx y = part.y0; y < part.y1; y += rows) {
      const idx n = min_idx(rows, part.y1 - y);
      t.x = x + y * w.sh * c.x.row;
      finish_at(t.finish, e, c.y, b, y);
      run_tiles(s, first, t, n * c.y.width);
      finish_rows(e, c.y, y, y + n, b, b + panel);
    }
    pool_part(e.pools, c.y, part, b, b + panel);
  }
}

static void conv(const Conv& c, Part part) {
  FF_ASSERT(part.b0 % c.panel == 0 && (part.b1 % c.panel == 0 || part.b1 == blocks_of(c.y.channels)));
  if (c.window.sw != 1)
    conv_part<0, false>(c, part);
  else if (taps_of(c.window) > 1)
    conv_part<L, false>(c, part);
  else
    conv_part<L, true>(c, part);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
