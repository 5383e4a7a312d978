// SPDX-License-Identifier: Apache-2.0
// A map at any places of it, as torch's grid_sample: a weighted sum of 1, 4 or 16 pixels, vectorised over channels.
#pragma once
#include "engine/kernels/tensor.h"

namespace ff {
namespace FF_ISA {
namespace {

using engine::Outside;
using engine::Sampling;

// A coordinate from -1 to 1 in pixels.
FF_INLINE float in_pixels(float c, idx size, bool corners) {
  const auto n = static_cast<float>(size);
  return corners ? (c + 1.f) * 0.5f * (n - 1.f) : ((c + 1.f) * n - 1.f) * 0.5f;
}

// Reflected at the middles of the outermost pixels, or at the edges of the map.
FF_INLINE float reflected(float v, idx size, bool corners) {
  const float low = corners ? 0.f : -0.5f, span = static_cast<float>(corners ? size - 1 : size);
  if (span == 0.f) return 0.f;
  const float beyond = __builtin_fabsf(v - low), times = __builtin_floorf(beyond / span);
  const float rest = beyond - times * span;
  return __builtin_floorf(times * 0.5f) * 2.f == times ? rest + low : span - rest + low;
}

// Within the map, where what is outside is the border or a reflection; what is no number then becomes 0.
FF_INLINE float inside(float v, idx size, Outside outside, bool corners) {
  if (outside == Outside::zeros) return v;
  if (outside == Outside::reflection) v = reflected(v, size, corners);
  const auto last = static_cast<float>(size - 1);
  return v > 0.f ? (v < last ? v : last) : 0.f;
}

// Pixels along one axis, -1 where there is none, and their weights.
struct AxisTaps {
  int count;
  idx at[4];
  float weight[4];
};

FF_INLINE idx pixel_at(float v, idx size) {
  return v >= 0.f && v <= static_cast<float>(size - 1) ? static_cast<idx>(v) : -1;
}

FF_INLINE AxisTaps axis_taps(const tensors::Sample& p, float c, idx size) {
  const float v = in_pixels(c, size, p.corners);
  if (p.sampling == Sampling::nearest)
    return {1, {pixel_at(__builtin_rintf(inside(v, size, p.outside, p.corners)), size)}, {1.f}};
  if (p.sampling == Sampling::bilinear) {
    const float place = inside(v, size, p.outside, p.corners), first = __builtin_floorf(place), t = place - first;
    return {2, {pixel_at(first, size), pixel_at(first + 1.f, size)}, {1.f - t, t}};
  }
  constexpr float kA = -0.75f;
  const float first = __builtin_floorf(v), t = v - first;
  const auto near = [](float d) { return ((kA + 2.f) * d - (kA + 3.f)) * d * d + 1.f; };
  const auto far = [](float d) { return ((kA * d - 5.f * kA) * d + 8.f * kA) * d - 4.f * kA; };
  AxisTaps taps{4, {}, {far(t + 1.f), near(t), near(1.f - t), far(2.f - t)}};
  for (int i = 0; i < 4; ++i)
    taps.at[i] = pixel_at(inside(first + static_cast<float>(i - 1), size, p.outside, p.corners), size);
  return taps;
}

FF_NOINLINE void sample(const tensors::Sample& p, Part part) {
  for (idx y = part.y0; y < part.y1; ++y)
    for (idx x = 0; x < p.y.width; ++x) {
      const float* place = at(p.grid, 0, y, x);
      const AxisTaps columns = axis_taps(p, place[0], p.x.width), rows = axis_taps(p, place[1], p.x.height);
      // A weight that is no number is one although its pixel is outside.
      float unknown = 0.f;
      for (int i = 0; i < rows.count; ++i)
        for (int j = 0; j < columns.count; ++j) {
          const float weight = rows.weight[i] * columns.weight[j];
          if (weight != weight) unknown = weight;
        }
      for (idx block = part.b0; block < part.b1; ++block) {
        vecf sum = splat(unknown);
        for (int i = 0; i < rows.count; ++i)
          for (int j = 0; j < columns.count; ++j)
            if (rows.at[i] >= 0 && columns.at[j] >= 0)
              sum =
                  fma(splat(rows.weight[i] * columns.weight[j]), load(at(p.x, block, rows.at[i], columns.at[j])), sum);
        store(at(p.y, block, y, x), sum);
      }
    }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
