// SPDX-License-Identifier: Apache-2.0
// Sums, extremes and statistics along the axes of a map, and what is made with them: softmax, norms.
#pragma once
#include "engine/kernels/functions.h"
#include "simd/lanes.h"

namespace ff {
namespace FF_ISA {
namespace {

using engine::ReduceOp;

// What one element of the result comes from: blocks, rows and columns of x.
struct Region {
  idx b0, b1, y0, y1, x0, x1;
};

template <class P>
FF_INLINE Region region_of(const P& p, idx block, idx y, idx x) {
  return {p.over_channels ? 0 : block, p.over_channels ? blocks_of(p.x.channels) : block + 1,
          p.over_height ? 0 : y,       p.over_height ? p.x.height : y + 1,
          p.over_width ? 0 : x,        p.over_width ? p.x.width : x + 1};
}

// Lanes from n on replaced.
FF_INLINE vecf only(vecf v, idx n, float other) {
  if (n >= L) return v;
  alignas(64) float lane[L];
  store(lane, v);
  for (idx l = n; l < L; ++l) lane[l] = other;
  return load(lane);
}

// step(v) of the vectors of a region, joined; rows by themselves, so that long sums round less. Over channels the lanes
// are joined, too, and all of them hold the result.
template <class Step, class Join>
FF_INLINE vecf fold(const Map& m, const Region& r, bool over_channels, float neutral, const Step& step,
                    const Join& join) {
  vecf all = splat(neutral);
  for (idx b = r.b0; b < r.b1; ++b) {
    const idx n = over_channels ? min_idx(L, m.channels - b * L) : L;
    for (idx y = r.y0; y < r.y1; ++y) {
      vecf line = splat(neutral);
      for (idx x = r.x0; x < r.x1; ++x) line = join(step(load(at(m, b, y, x))), line);
      all = join(only(line, n, neutral), all);
    }
  }
  if (!over_channels) return all;
  alignas(64) float lane[L];
  store(lane, all);
  vecf one = splat(lane[0]);
  for (idx l = 1; l < L; ++l) one = join(splat(lane[l]), one);
  return one;
}

constexpr float kInfinity = __builtin_inff();
struct Sum {
  FF_CLASS_INLINE vecf operator()(vecf v, vecf all) const { return v + all; }
};
struct Product {
  FF_CLASS_INLINE vecf operator()(vecf v, vecf all) const { return v * all; }
};
struct Most {
  FF_CLASS_INLINE vecf operator()(vecf v, vecf all) const { return larger(v, all); }
};
struct Least {
  FF_CLASS_INLINE vecf operator()(vecf v, vecf all) const { return smaller(v, all); }
};
struct Same {
  FF_CLASS_INLINE vecf operator()(vecf v) const { return v; }
};

template <class P>
FF_NOINLINE vecf sum_region(const P& p, const Region& r) {
  return fold(p.x, r, p.over_channels, 0.f, Same{}, Sum{});
}
template <class P>
FF_NOINLINE vecf most_region(const P& p, const Region& r) {
  return fold(p.x, r, p.over_channels, -kInfinity, Same{}, Most{});
}

FF_INLINE vecf reduced(const tensors::Reduce& p, const Region& r) {
  const bool all = p.over_channels;
  const auto count = static_cast<float>((all ? p.x.channels : 1) * (r.y1 - r.y0) * (r.x1 - r.x0));
  const auto square = [](vecf v) { return v * v; };
  switch (p.function) {
    case ReduceOp::sum: return sum_region(p, r);
    case ReduceOp::mean: return sum_region(p, r) / splat(count);
    case ReduceOp::maximum: return most_region(p, r);
    case ReduceOp::minimum: return fold(p.x, r, all, kInfinity, Same{}, Least{});
    case ReduceOp::product: return fold(p.x, r, all, 1.f, Same{}, Product{});
    case ReduceOp::norm1: return fold(p.x, r, all, 0.f, magnitude, Sum{});
    case ReduceOp::norm2: return square_root(fold(p.x, r, all, 0.f, square, Sum{}));
    case ReduceOp::variance:
    case ReduceOp::deviation: {
      const vecf mean = sum_region(p, r) / splat(count);
      const vecf squares = fold(p.x, r, all, 0.f, [&](vecf v) { return square(v - mean); }, Sum{});
      const vecf variance = squares / splat(count - p.correction > 0 ? count - p.correction : 0.f);
      return p.function == ReduceOp::variance ? variance : square_root(variance);
    }
    case ReduceOp::log_sum_exp: {
      const vecf most = most_region(p, r), from = magnitude(most) == splat(kInfinity) ? vecf{} : most;
      return from + logarithm(fold(p.x, r, all, 0.f, [&](vecf v) { return exp<float>(v - from); }, Sum{}));
    }
    default: return vecf{};
  }
}

// The first place of the largest or smallest, NaN being both.
FF_NOINLINE vecf place_of_best(const tensors::Reduce& p, const Region& r) {
  alignas(64) float place[L], best[L];
  const float sign = p.function == ReduceOp::argmax ? 1.f : -1.f;
  const idx lanes_here = p.over_channels ? 1 : L;
  for (idx lane = 0; lane < lanes_here; ++lane) {
    const idx c0 = p.over_channels ? 0 : r.b0 * L + lane, c1 = p.over_channels ? p.x.channels : c0 + 1;
    idx number = 0;
    place[lane] = 0.f, best[lane] = -kInfinity;
    for (idx c = c0; c < c1; ++c)
      for (idx y = r.y0; y < r.y1; ++y)
        for (idx x = r.x0; x < r.x1; ++x, ++number) {
          const float v = sign * at(p.x, c / L, y, x)[c % L];
          if (v > best[lane] || (v != v && best[lane] == best[lane]))
            best[lane] = v, place[lane] = static_cast<float>(number);
        }
  }
  for (idx lane = lanes_here; lane < L; ++lane) place[lane] = place[0];
  return load(place);
}

FF_NOINLINE void reduce_axes(const tensors::Reduce& p, Part part) {
  const bool places = p.function == ReduceOp::argmax || p.function == ReduceOp::argmin;
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx y = part.y0; y < part.y1; ++y)
      for (idx x = 0; x < p.y.width; ++x) {
        const Region r = region_of(p, block, y, x);
        store(at(p.y, block, y, x), places ? place_of_best(p, r) : reduced(p, r));
      }
}

FF_NOINLINE void softmax_axes(const tensors::Softmax& p, Part part) {
  const idx step_b = p.over_channels ? part.b1 - part.b0 : 1, step_y = p.over_height ? part.y1 - part.y0 : 1,
            step_x = p.over_width ? p.x.width : 1;
  for (idx block = part.b0; block < part.b1; block += step_b)
    for (idx y = part.y0; y < part.y1; y += step_y)
      for (idx x = 0; x < p.x.width; x += step_x) {
        const Region r = region_of(p, block, y, x);
        const vecf most = most_region(p, r);
        const vecf total = fold(p.x, r, p.over_channels, 0.f, [&](vecf v) { return exp<float>(v - most); }, Sum{});
        const vecf scale = splat(1.f) / total, offset = p.log ? most + logarithm(total) : most;
        for (idx b = r.b0; b < r.b1; ++b)
          for (idx i = r.y0; i < r.y1; ++i)
            for (idx j = r.x0; j < r.x1; ++j) {
              const vecf v = load(at(p.x, b, i, j));
              store(at(p.y, b, i, j), p.log ? v - offset : exp<float>(v - most) * scale);
            }
      }
}

// Sums of a function of a block's pixels, a lane each.
template <class Step>
FF_INLINE vecf block_sum(const Map& m, idx b, const Step& step) {
  return fold(m, {b, b + 1, 0, m.height, 0, m.width}, false, 0.f, step, Sum{});
}

// Of each group of `length` numbers their mean over `count` elements each, in every place of the group.
FF_INLINE void group_means(float* values, idx channels, idx length, double count) {
  for (idx c = 0; c < channels; c += length) {
    double sum = 0;
    for (idx i = c; i < c + length; ++i) sum += values[i];
    for (idx i = c; i < c + length; ++i) values[i] = static_cast<float>(sum / (count * static_cast<double>(length)));
  }
}

FF_NOINLINE void group_stats(const tensors::GroupStats& p) {
  const idx blocks = blocks_of(p.x.channels), length = p.x.channels / p.groups;
  const double count = static_cast<double>(p.x.height) * p.x.width;
  float *mean = p.to, *variance = p.to + blocks * L;
  for (idx b = 0; b < blocks; ++b) store(mean + b * L, block_sum(p.x, b, Same{}));
  group_means(mean, p.x.channels, length, count);
  for (idx b = 0; b < blocks; ++b) {
    const vecf m = load(mean + b * L);
    store(variance + b * L, block_sum(p.x, b, [&](vecf v) { return (v - m) * (v - m); }));
  }
  group_means(variance, p.x.channels, length, count);
  for (idx b = 0; b < blocks * L; b += L) {
    const vecf scale = load(p.scale + b) / square_root(load(variance + b) + splat(p.eps));
    store(variance + b, load(p.shift + b) - load(mean + b) * scale);
    store(mean + b, scale);
  }
}

// The sums over the channels of `pixels` pixels at x of step(v, pixel), a lane each; `real` masks the last block.
template <class Step>
FF_INLINE vecf pixel_sums(const Map& m, const float* x, idx pixels, veci real, const Step& step) {
  alignas(64) float sums[L][L] = {};
  const idx last = blocks_of(m.channels) - 1;
  for (idx i = 0; i < pixels; ++i) {
    vecf sum = {};
    for (idx b = 0; b < last; ++b) sum = sum + step(load(x + b * m.block + i * L), i);
    store(sums[i], sum + (real ? step(load(x + last * m.block + i * L), i) : vecf{}));
  }
  return reduce_lanes_of<float>(sums[0], Add{});
}

// As many pixels at a time as a vector has lanes: the sums over lanes are then a transpose and a tree.
FF_NOINLINE void pixel_norm(const tensors::PixelNorm& p, Part part) {
  const idx blocks = blocks_of(p.x.channels);
  const vecf count = splat(static_cast<float>(p.x.channels));
  const veci real = lane_numbers<float>() < static_cast<int>(p.x.channels - (blocks - 1) * L);
  alignas(64) float mean[L], scale[L];
  for (idx y = part.y0; y < part.y1; ++y)
    for (idx x0 = 0; x0 < p.x.width; x0 += L) {
      const idx n = min_idx(L, p.x.width - x0);
      const float* x = at(p.x, 0, y, x0);
      store(mean, pixel_sums(p.x, x, n, real, [](vecf v, idx) { return v; }) / count);
      const auto square = [&](vecf v, idx i) { return (v - splat(mean[i])) * (v - splat(mean[i])); };
      store(scale, splat(1.f) / square_root(pixel_sums(p.x, x, n, real, square) / count + splat(p.eps)));
      for (idx b = 0; b < blocks; ++b) {
        const vecf factor = load(p.scale + b * L), shift = load(p.shift + b * L);
        float* to = at(p.y, b, y, x0);
        for (idx i = 0; i < n; ++i) {
          const vecf v = (load(x + b * p.x.block + i * L) - splat(mean[i])) * splat(scale[i]);
          store(to + i * L, fma(v, factor, shift));
        }
      }
    }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
