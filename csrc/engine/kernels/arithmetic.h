// SPDX-License-Identifier: Apache-2.0
// Windows of pooling, sums and products of maps, affine maps, channels put side by side.
#pragma once
#include "engine/kernels/pixels.h"

namespace ff {
namespace FF_ISA {
namespace {

// The maximum or the sum over kh × kw pixels from x on; KH, KW: what these are, if known when compiled, else 0.
template <bool Mean, int KH, int KW>
FF_INLINE vecf pool_window(const float* x, idx row, idx kh, idx kw) {
  vecf v = Mean ? vecf{} : splat(-__builtin_inff());
  for (idx i = 0; i < (KH ? KH : kh); ++i)
    for (idx j = 0; j < (KW ? KW : kw); ++j) {
      const vecf pixel = load(x + i * row + j * L);
      v = Mean ? v + pixel : larger(pixel, v);
    }
  return v;
}

// One row of one block: windows that leave the image on a side are clipped.
template <bool Mean, int KH, int KW>
FF_INLINE void pool_line(const engine::WindowPool& p, idx block, idx y) {
  const Window& w = p.window;
  const idx top = y * w.sh - w.top, y0 = max_idx(top, 0), y1 = min_idx(top + w.kh, p.x.height);
  const bool whole = y1 - y0 == w.kh;
  const idx rows = p.count_padding ? min_idx(top + w.kh, p.x.height + p.bottom) - top : y1 - y0;
  const float *from = at(p.x, block, y0), *residual = p.residual.data ? at(p.residual, block, y) : nullptr;
  float* to = at(p.y, block, y);
  for (idx x = 0; x < p.y.width; ++x) {
    const idx left = x * w.sw - w.left, x0 = max_idx(left, 0), x1 = min_idx(left + w.kw, p.x.width);
    const bool inside = whole && x1 - x0 == w.kw;
    vecf v = inside ? pool_window<Mean, KH, KW>(from + x0 * L, p.x.row, w.kh, w.kw)
                    : pool_window<Mean, 0, 0>(from + x0 * L, p.x.row, y1 - y0, x1 - x0);
    if (Mean) {
      const idx columns = p.count_padding ? min_idx(left + w.kw, p.x.width + p.right) - left : x1 - x0;
      v = v / splat(static_cast<float>(rows * columns));
    }
    store(to + x * L, residual ? v + load(residual + x * L) : v);
  }
}

template <bool Mean, int KH, int KW>
FF_NOINLINE void pool_lines(const engine::WindowPool& p, Part part) {
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx y = part.y0; y < part.y1; ++y) pool_line<Mean, KH, KW>(p, block, y);
}

static void window_pool(const engine::WindowPool& p, Part part) {
  const int kh = p.window.kh, kw = p.window.kw;
  if (p.mean) return pool_lines<true, 0, 0>(p, part);
  if (kh == 2 && kw == 2) return pool_lines<false, 2, 2>(p, part);
  if (kh == 3 && kw == 3) return pool_lines<false, 3, 3>(p, part);
  pool_lines<false, 0, 0>(p, part);
}

FF_NOINLINE void tap_means(const engine::TapMeans& p, Part part) {
  const Window& w = p.window;
  const vecf share = splat(1.f / (static_cast<float>(p.height) * static_cast<float>(p.width)));
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx k = part.y0; k < part.y1; ++k)
      for (idx l = 0; l < w.kw; ++l) {
        vecf sum = {};
        for (idx y = 0; y < p.height; ++y)
          for (idx x = 0; x < p.width; ++x)
            sum = sum + load(at(p.x, block, y * w.sh - w.top + k, x * w.sw - w.left + l));
        store(at(p.y, block, k, l), sum * share);
      }
}

FF_NOINLINE void binary(const engine::Binary& p, Part part) {
  const idx b_pixel = p.b.width > 1 ? L : 0, b_row = p.b.height > 1 ? p.b.row : 0;
  const bool one_channel = p.b.channels == 1 && p.a.channels > 1;
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx y = part.y0; y < part.y1; ++y) {
      const float *a = at(p.a, block, y), *b = p.b.data + (one_channel ? 0 : block * p.b.block) + y * b_row;
      float* to = at(p.y, block, y);
      for (idx x = 0; x < p.y.width; ++x, a += L, b += b_pixel, to += L) {
        const vecf second = one_channel ? splat(*b) : load(b), first = load(a);
        store(to, act_of(p.act, p.product ? first * second : first + second));
      }
    }
}

FF_NOINLINE void affine(const engine::Affine& p, Part part) {
  for (idx block = part.b0; block < part.b1; ++block) {
    const vecf scale = p.scale ? load(p.scale + block * L) : splat(1.f);
    const vecf shift = p.shift ? load(p.shift + block * L) : vecf{};
    for (idx y = part.y0; y < part.y1; ++y)
      for (idx x = 0; x < p.y.width; ++x)
        store(at(p.y, block, y, x), act_of(p.act, fma(load(at(p.x, block, y, x)), scale, shift)));
  }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
