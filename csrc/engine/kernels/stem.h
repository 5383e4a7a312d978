// SPDX-License-Identifier: Apache-2.0
// The first convolution: reads the caller's NCHW image, float32 or bytes, by bands of rows that are normalised and
// padded on their way into scratch (a copy of the image costs 2 µs at 3×224×224), and writes a blocked map.
#pragma once
#include "engine/kernels/conv.h"

namespace ff {
namespace FF_ISA {
namespace {

using engine::Pixels;
using engine::Stem;

// Rows of scratch are a whole number of vectors, so that a band's start on a cache line.
struct StemBand {
  idx rows, in_rows, row, plane;  // output and input rows; floats of a row and of a channel
};

FF_INLINE StemBand stem_band(const Stem& s) {
  constexpr idx kFloats = 6144;  // half of the smallest L1 in use
  const idx row = round_up_lanes<float>((s.y.width - 1) * s.window.sw + s.window.kw);
  const idx most = (kFloats / (row * s.channels) - s.window.kh) / s.window.sh + 1;
  const idx rows = max_idx(1, min_idx(most, s.y.height)), in_rows = (rows - 1) * s.window.sh + s.window.kh;
  return {rows, in_rows, row, in_rows * row};
}

static size_t stem_scratch(const Stem& s) { return static_cast<size_t>(stem_band(s).plane * s.channels); }

FF_INLINE vecf load_pixels(const float* p, idx n) { return load_n<float>(p, n); }
FF_INLINE vecf load_pixels(const uint8_t* p, idx n) { return __builtin_convertvector((i32v)widen32(p, n), vecf); }

// Columns [-left, row - left) of one row of the image: scale·value + shift, zeros outside.
template <class T>
FF_INLINE void stem_line(float* to, const T* from, idx left, idx row, idx width, float scale, float shift) {
  const idx end = min_idx(row, left + width);
  for (idx x = 0; x < left; ++x) to[x] = 0.f;
  for_lanes<float>(end - left, [&](idx x, idx n) {
    store_n<float>(to + left + x, fma(load_pixels(from + x, n), splat(scale), splat(shift)), n);
  });
  for (idx x = end; x < row; ++x) to[x] = 0.f;
}

template <class T>
FF_NOINLINE void stem_lines(const Stem& s, const StemBand& band, idx first) {
  for (idx c = 0; c < s.channels; ++c) {
    const float scale = s.scale ? s.scale[c] : 1.f, shift = s.shift ? s.shift[c] : 0.f;
    for (idx i = 0; i < band.in_rows; ++i) {
      const idx y = first + i;
      float* to = s.scratch + c * band.plane + i * band.row;
      if (y < 0 || y >= s.height)
        for (idx x = 0; x < band.row; ++x) to[x] = 0.f;
      else
        stem_line(to, static_cast<const T*>(s.x) + (c * s.height + y) * s.width, s.window.left, band.row, s.width,
                  scale, shift);
    }
  }
}

template <int Step>
FF_NOINLINE void stem_part(const Stem& s, Part part) {
  const Window& w = s.window;
  const Epilogue& e = s.epilogue;
  const StemBand band = stem_band(s);
  ConvTiles t{nullptr,    w.sw,    band.row, 1, L * band.plane,   band.plane, w.kh, w.kw,
              s.channels, nullptr, nullptr,  0, finish_of(e, s.y)};
  for (idx y0 = part.y0; y0 < part.y1; y0 += band.rows) {
    const idx y1 = min_idx(part.y1, y0 + band.rows), top = y0 * w.sh - w.top;
    s.type == Pixels::uint8 ? stem_lines<uint8_t>(s, band, top) : stem_lines<float>(s, band, top);
    for (idx b = part.b0; b < part.b1; b += s.panel) {
      const int panel = static_cast<int>(min_idx(s.panel, part.b1 - b));
      const TileSizes& sizes = PanelTiles<Step, false>::of(panel);
      const int first = best_first(sizes, panel, s.y.width);
      t.weights = s.weights + b * L * s.channels * taps_of(w);
      t.bias = e.bias + b * L;
      for (idx y = y0; y < y1; ++y) {
        t.x = s.scratch + (y - y0) * w.sh * band.row;
        finish_at(t.finish, e, s.y, b, y);
        run_tiles(sizes, first, t, s.y.width);
        finish_rows(e, s.y, y, y + 1, b, b + panel);
      }
    }
  }
  pool_part(e.pools, s.y, part, part.b0, part.b1);
}

static int stem_panel(int, int out_channels, int, int out_width, const Window& w) {
  const idx blocks = blocks_of(out_channels);
  return w.sw == 1   ? best_panel<1, false>(blocks, out_width)
         : w.sw == 2 ? best_panel<2, false>(blocks, out_width)
                     : best_panel<0, false>(blocks, out_width);
}

static void stem(const Stem& s, Part part) {
  if (s.window.sw == 1)
    stem_part<1>(s, part);
  else if (s.window.sw == 2)
    stem_part<2>(s, part);
  else
    stem_part<0>(s, part);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
