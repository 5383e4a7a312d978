// SPDX-License-Identifier: Apache-2.0
// What the kernels between convolutions share: addresses in maps, activations by code, and pools of lines.
#pragma once
#include "simd/lanes.h"
#include "engine/glue.h"
#include "engine/kernels/finish.h"

namespace ff {
namespace FF_ISA {
namespace {

using engine::Pixels;

FF_INLINE float* at(const Map& m, idx block, idx y, idx x = 0) { return m.data + block * m.block + y * m.row + x * L; }

#if FF_VEC_BYTES == 64
#define FF_EACH_LANE(f) \
  f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15)
#elif FF_VEC_BYTES == 32
#define FF_EACH_LANE(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)
#else
#define FF_EACH_LANE(f) f(0), f(1), f(2), f(3)
#endif
#define FF_SAME(i) i
#define FF_EVEN(i) 2 * (i)
#define FF_ODD(i) 2 * (i) + 1
FF_INLINE vecf lane_numbers() { return vecf{FF_EACH_LANE(FF_SAME)}; }
// The lanes of a, then of b, of even and of odd number.
FF_INLINE vecf even_lanes(vecf a, vecf b) { return __builtin_shufflevector(a, b, FF_EACH_LANE(FF_EVEN)); }
FF_INLINE vecf odd_lanes(vecf a, vecf b) { return __builtin_shufflevector(a, b, FF_EACH_LANE(FF_ODD)); }
#undef FF_ODD
#undef FF_EVEN
#undef FF_SAME
#undef FF_EACH_LANE

// The first n lanes, zero in the others; n at least 0.
FF_INLINE vecf masked(vecf v, idx n) {
  if (n >= L) return v;
  alignas(64) float lane[L];
  store(lane, v);
  return load(lane, n);
}

FF_NOINLINE vecf slow_act(Act act, vecf v) {
  with_act(act, [&](auto tag) { v = quick_act<decltype(tag)::value>(v); });
  return v;
}

FF_INLINE vecf act_of(Act act, vecf v) {
  return act == Act::none ? v : act == Act::relu ? max_bound(v, vecf{}) : slow_act(act, v);
}

FF_INLINE float pixel_value(const void* x, Pixels type, idx i, const float* scale, const float* shift, idx channel) {
  const float v =
      type == Pixels::uint8 ? static_cast<float>(static_cast<const uint8_t*>(x)[i]) : static_cast<const float*>(x)[i];
  return scale ? v * scale[channel] + shift[channel] : v;
}

FF_NOINLINE void import(const engine::Import& p, Part part) {
  const Map& y = p.y;
  const idx plane = idx{y.height} * y.width;
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx row = part.y0; row < part.y1; ++row)
      for (idx x = 0; x < y.width; ++x) {
        float* to = at(y, block, row, x);
        for (idx lane = 0; lane < L; ++lane) {
          const idx c = block * L + lane;
          to[lane] =
              c < y.channels ? pixel_value(p.x, p.type, c * plane + row * y.width + x, p.scale, p.shift, c) : 0.f;
        }
      }
}

// By squares of L pixels and L channels, whose rows become columns: one by one, numbers took ten times as long.
FF_NOINLINE void export_map(const engine::Export& p, Part part) {
  const Map& m = p.x;
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx row = part.y0; row < part.y1; ++row)
      for (idx x = 0; x < m.width; x += L) {
        const idx pixels = min_idx(L, m.width - x), channels = min_idx(L, m.channels - block * L);
        vecf square[L];
        FF_UNROLL(16)
        for (idx i = 0; i < L; ++i) square[i] = i < pixels ? load(at(m, block, row, x + i)) : vecf{};
        if (pixels == 1 && m.height * m.width == 1) {  // channels lie side by side
          store_n<float>(p.y + block * L, square[0], channels);
          continue;
        }
        transpose<float>(square);
        for (idx c = 0; c < channels; ++c)
          store_n<float>(p.y + ((block * L + c) * m.height + row) * m.width + x, square[c], pixels);
      }
}

// Lines of the rows in the part; columns start at row 0 and go on.
FF_NOINLINE void line_pools(const engine::LinePools& p, Part part) {
  const Map& m = p.x;
  const engine::Pools& to = p.pools;
  const vecf least = splat(-__builtin_inff());
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx row = part.y0; row < part.y1; ++row) {
      const float* x = at(m, block, row);
      vecf sum = {}, most = least;
      for (idx i = 0; i < m.width; ++i) {
        const vecf v = load(x + i * L);
        sum = sum + v, most = larger(v, most);
        float* column = to.column_sum ? to.column_sum + (block * m.width + i) * L : nullptr;
        if (column) store(column, row ? load(column) + v : v);
        column = to.column_max ? to.column_max + (block * m.width + i) * L : nullptr;
        if (column) store(column, row ? larger(v, load(column)) : v);
      }
      if (to.line_sum) store(to.line_sum + (block * m.height + row) * L, sum);
      if (to.line_max) store(to.line_max + (block * m.height + row) * L, most);
    }
}

FF_NOINLINE void reduce(const engine::Reduce& p) {
  for (idx block = 0; block < ceil_div(p.y.channels, L); ++block) {
    vecf sum = {}, most = splat(-__builtin_inff());
    for (idx i = 0; i < p.lines; ++i) {
      const idx from = (block * p.lines + i) * L;
      if (p.sums) sum = sum + load(p.sums + from);
      if (p.maxima) most = larger(load(p.maxima + from), most);
    }
    sum = sum * splat(p.scale);
    float* to = at(p.y, block, 0);
    if (p.both) {
      store(to, sum + most);
      continue;
    }
    if (p.sums) store(to, sum), to += L;
    if (p.maxima) store(to, most);
  }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
