// SPDX-License-Identifier: Apache-2.0
// Gates: pools of pixels over the channels, the spatial convolution, and maps times their gates.
#pragma once
#include "engine/kernels/pixels.h"
#include "simd/horizontal.h"

namespace ff {
namespace FF_ISA {
namespace {

FF_INLINE float sigmoid(float v) { return logistic<float>(splat(v))[0]; }

FF_NOINLINE void pixel_pools(const engine::PixelPools& p, Part part) {
  const idx channels = p.x.channels, blocks = ceil_div(channels, L);
  for (idx y = part.y0; y < part.y1; ++y)
    for (idx x = 0; x < p.x.width; ++x) {
      vecf sum = {};
      float most = -__builtin_inff();
      for (idx block = 0; block < blocks; ++block) {
        const idx n = min_idx(L, channels - block * L);
        vecf v = load(at(p.x, block, y, x));
        if (p.gate) v = v * load(p.gate + block * L);
        v = masked(v, n);
        sum = p.taps ? fma(v, load(p.taps + block * L), sum) : sum + v;
        if (!p.max) continue;
        for (idx lane = 0; lane < n; ++lane) most = v[lane] > most ? v[lane] : most;
      }
      if (p.max) p.max[y * p.row + x] = most;
      const float total = sum_lanes<float>(sum);
      if (p.mean) p.mean[y * p.row + x] = p.taps ? sigmoid(total + p.bias) : total / static_cast<float>(channels);
    }
}

FF_NOINLINE void pixel_gate(const engine::PixelGate& p, Part part) {
  for (idx y = part.y0; y < part.y1; ++y)
    for_lanes<float>(p.width, [&](idx x, idx n) {
      vecf sum = splat(p.bias);
      const float* w = p.weights;
      for (idx plane = 0; plane < p.count; ++plane)
        for (idx ky = 0; ky < p.kh; ++ky)
          for (idx kx = 0; kx < p.kw; ++kx, ++w)
            sum = fma(load_n<float>(p.planes + plane * p.plane + (y + ky - p.kh / 2) * p.row + x + kx - p.kw / 2, n), splat(*w), sum);
      store_n<float>(p.y + y * p.y_row + x, logistic<float>(sum), n);
    });
}

FF_INLINE vecf gated_pixel(const engine::Gated& p, idx block, idx y, idx x) {
  const vecf channel = p.channel ? load(p.channel + block * L) : splat(p.sum ? 0.f : 1.f);
  const vecf pixel = splat(p.pixel ? p.pixel[y * p.pixel_row + x] : p.sum ? 0.f : 1.f);
  return load(at(p.x, block, y, x)) * (p.sum ? channel + pixel : channel * pixel);
}

FF_NOINLINE void gated(const engine::Gated& p, Part part) {
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx y = part.y0; y < part.y1; ++y)
      for (idx x = 0; x < p.y.width; ++x) {
        vecf v;
        if (p.pool) {
          const vecf above = max_bound(gated_pixel(p, block, 2 * y, 2 * x), gated_pixel(p, block, 2 * y, 2 * x + 1));
          const vecf below = max_bound(gated_pixel(p, block, 2 * y + 1, 2 * x), gated_pixel(p, block, 2 * y + 1, 2 * x + 1));
          v = max_bound(above, below);
        } else {
          v = gated_pixel(p, block, y, x);
        }
        if (p.residual.data) v = v + load(at(p.residual, block, y, x));
        store(at(p.y, block, y, x), v);
      }
}

FF_NOINLINE void line_gated(const engine::LineGated& p, Part part) {
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx y = part.y0; y < part.y1; ++y) {
      const vecf row = load(at(p.rows, block, y));
      for (idx x = 0; x < p.y.width; ++x)
        store(at(p.y, block, y, x), load(at(p.x, block, y, x)) * row * load(at(p.columns, block, 0, x)));
    }
}

FF_NOINLINE void neighbour_gate(const engine::NeighbourGate& p) {
  for (idx c = 0; c < p.channels; ++c) {
    float sum = 0;
    for (idx k = 0; k < p.taps; ++k) {
      const idx from = c + k - p.taps / 2;
      if (from >= 0 && from < p.channels) sum += p.weights[k] * p.means[from];
    }
    p.y[c] = sigmoid(sum);
  }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
