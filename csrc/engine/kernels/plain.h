// SPDX-License-Identifier: Apache-2.0
// Convolutions of any window without tuning: the pixels of a row in tiles, one channel block of the output at a time.
#pragma once
#include "engine/kernels/pixels.h"

namespace ff {
namespace FF_ISA {
namespace {

using engine::Conv;
using engine::Epilogue;
using engine::Stem;

FF_INLINE int plain_panel(int, int, int, int, const Window&) { return 1; }

FF_INLINE size_t plain_packed(int in_channels, int out_channels, const Window& window) {
  return static_cast<size_t>(round_up_lanes<float>(out_channels) * in_channels * window.kh * window.kw);
}

// [output block][input block][tap][channel of the block][lane]
FF_INLINE void plain_pack(float* packed, const float* w, int in_channels, int out_channels, const Window& window, int) {
  const idx taps = idx{window.kh} * window.kw;
  for (idx o = 0; o < out_channels; o += kLanes)
    for (idx c = 0; c < in_channels; c += kLanes)
      for (idx tap = 0; tap < taps; ++tap)
        for (idx i = c; i < min_idx(in_channels, c + kLanes); ++i)
          for (idx lane = 0; lane < kLanes; ++lane)
            *packed++ = o + lane < out_channels ? w[((o + lane) * in_channels + i) * taps + tap] : 0.f;
}

FF_INLINE void finish_pixel(const Epilogue& e, idx block, idx y, idx x, f32v v, float* out, idx channels) {
  v = act_of(e.act, v);
  if (e.residual.data) v = act_of(e.after, v + load(e.residual.data + block * e.residual.block + y * e.residual.row + x * kLanes));
  store(out, masked(v, channels - block * kLanes));
}

FF_INLINE void pool_rows(const engine::Pools& pools, const Map& y, Part part) {
  if (pools.line_sum || pools.line_max || pools.column_sum || pools.column_max) line_pools(engine::LinePools{y, pools}, part);
}

FF_NOINLINE void plain_conv(const Conv& c, Part part) {
  constexpr int kTile = 6;
  const Window& w = c.window;
  const idx per_block = idx{c.x.channels} * w.kh * w.kw * kLanes;
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx y = part.y0; y < part.y1; ++y)
      for (idx x = 0; x < c.y.width; x += kTile) {
        const idx tile = min_idx(kTile, c.y.width - x);
        f32v acc[kTile];
        for (int i = 0; i < kTile; ++i) acc[i] = load(c.epilogue.bias + block * kLanes);
        const float* weights = c.weights + block * per_block;
        const float* origin = c.x.data + (y * w.sh - w.top) * c.x.row + (x * w.sw - w.left) * kLanes;
        for (idx in = 0; in < c.x.channels; in += kLanes, origin += c.x.block)
          for (idx ky = 0; ky < w.kh; ++ky)
            for (idx kx = 0; kx < w.kw; ++kx) {
              const float* from = origin + ky * c.x.row + kx * kLanes;
              for (idx lane = 0; lane < min_idx(kLanes, c.x.channels - in); ++lane, weights += kLanes) {
                const f32v wv = load(weights);
                for (idx i = 0; i < tile; ++i) acc[i] = fma(splat(from[i * w.sw * kLanes + lane]), wv, acc[i]);
              }
            }
        for (idx i = 0; i < tile; ++i)
          finish_pixel(c.epilogue, block, y, x + i, acc[i], c.y.data + block * c.y.block + y * c.y.row + (x + i) * kLanes, c.y.channels);
      }
  pool_rows(c.epilogue.pools, c.y, part);
}

FF_INLINE size_t plain_depthwise_packed(int channels, const Window& window) {
  return static_cast<size_t>(round_up_lanes<float>(channels) * window.kh * window.kw);
}

// [block][tap][lane]
FF_INLINE void plain_pack_depthwise(float* packed, const float* w, int channels, const Window& window) {
  const idx taps = idx{window.kh} * window.kw;
  for (idx c = 0; c < channels; c += kLanes)
    for (idx tap = 0; tap < taps; ++tap)
      for (idx lane = 0; lane < kLanes; ++lane) *packed++ = c + lane < channels ? w[(c + lane) * taps + tap] : 0.f;
}

FF_NOINLINE void plain_depthwise(const Conv& c, Part part) {
  const Window& w = c.window;
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx y = part.y0; y < part.y1; ++y)
      for (idx x = 0; x < c.y.width; ++x) {
        f32v acc = load(c.epilogue.bias + block * kLanes);
        const float* weights = c.weights + block * w.kh * w.kw * kLanes;
        for (idx ky = 0; ky < w.kh; ++ky)
          for (idx kx = 0; kx < w.kw; ++kx, weights += kLanes)
            acc = fma(load(c.x.data + block * c.x.block + (y * w.sh - w.top + ky) * c.x.row + (x * w.sw - w.left + kx) * kLanes),
                      load(weights), acc);
        finish_pixel(c.epilogue, block, y, x, acc, c.y.data + block * c.y.block + y * c.y.row + x * kLanes, c.y.channels);
      }
  pool_rows(c.epilogue.pools, c.y, part);
}

FF_NOINLINE void plain_stem(const Stem& s, Part part) {
  const Window& w = s.window;
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx y = part.y0; y < part.y1; ++y)
      for (idx x = 0; x < s.y.width; ++x) {
        f32v acc = load(s.epilogue.bias + block * kLanes);
        for (idx c = 0; c < s.channels; ++c)
          for (idx ky = 0; ky < w.kh; ++ky)
            for (idx kx = 0; kx < w.kw; ++kx) {
              const idx iy = y * w.sh - w.top + ky, ix = x * w.sw - w.left + kx;
              if (iy < 0 || iy >= s.height || ix < 0 || ix >= s.width) continue;
              const float v = pixel_value(s.x, s.type, (c * s.height + iy) * s.width + ix, s.scale, s.shift, c);
              // Packed as by plain_pack: at most one block of input channels is few.
              const idx in = c / kLanes * kLanes, n = min_idx(kLanes, s.channels - in);
              const float* weights = s.weights + block * s.channels * w.kh * w.kw * kLanes + in * w.kh * w.kw * kLanes;
              acc = fma(splat(v), load(weights + ((ky * w.kw + kx) * n + c - in) * kLanes), acc);
            }
        finish_pixel(s.epilogue, block, y, x, acc, s.y.data + block * s.y.block + y * s.y.row + x * kLanes, s.y.channels);
      }
  pool_rows(s.epilogue.pools, s.y, part);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
