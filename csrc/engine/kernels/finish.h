// SPDX-License-Identifier: Apache-2.0
// What follows a tile's sums while they are in registers: activation, residual; and the pools of rows just written.
#pragma once
#include "engine/map.h"
#include "simd/math.h"

namespace ff {
namespace FF_ISA {
namespace {

using engine::Epilogue;
using engine::Map;
using engine::Part;
using engine::Pools;
using engine::Window;

constexpr idx L = lanes<float>;
using vecf = vec<float>;

// In registers: none, relu and relu6 are a clamp, hardsigmoid is one of v/6 + 1/2, hardswish is v times that. Others go
// through memory.
enum class Form : int { clamp, hardswish, hardsigmoid, other };

struct Activation {
  Form form;
  Act act;
  float lo, hi;
};

FF_INLINE Activation activation_of(Act act) {
  const float inf = __builtin_inff();
  switch (act) {
    case Act::none: return {Form::clamp, act, -inf, inf};
    case Act::relu: return {Form::clamp, act, 0.f, inf};
    case Act::relu6: return {Form::clamp, act, 0.f, 6.f};
    case Act::hardswish: return {Form::hardswish, act, 0.f, 1.f};
    case Act::hardsigmoid: return {Form::hardsigmoid, act, 0.f, 1.f};
    default: return {Form::other, act, -inf, inf};
  }
}

FF_NOINLINE void activate_vectors(Act act, float* values, int count) {
  with_act(act, [&](auto tag) {
    for (int i = 0; i < count; ++i) store(values + i * L, activate<decltype(tag)::value, float>(load(values + i * L)));
  });
}

FF_INLINE vecf ramp(vecf v, vecf lo, vecf hi) {
  return min_bound(max_bound(fma(v, splat(1.f / 6), splat(0.5f)), lo), hi);
}

template <int MR, int NR>
FF_INLINE void activate_tile(vecf (&acc)[MR][NR], const Activation& a) {
  const vecf lo = splat(a.lo), hi = splat(a.hi);
  if (a.form == Form::clamp) {
    FF_UNROLL(16)
    for (int i = 0; i < MR; ++i) {
      FF_UNROLL(8)
      for (int j = 0; j < NR; ++j) acc[i][j] = min_bound(max_bound(acc[i][j], lo), hi);
    }
  } else if (a.form == Form::hardswish) {
    FF_UNROLL(16)
    for (int i = 0; i < MR; ++i) {
      FF_UNROLL(8)
      for (int j = 0; j < NR; ++j) acc[i][j] = acc[i][j] * ramp(acc[i][j], lo, hi);
    }
  } else if (a.form == Form::hardsigmoid) {
    FF_UNROLL(16)
    for (int i = 0; i < MR; ++i) {
      FF_UNROLL(8)
      for (int j = 0; j < NR; ++j) acc[i][j] = ramp(acc[i][j], lo, hi);
    }
  } else {
    alignas(64) float values[MR * NR * L];
    FF_UNROLL(16)
    for (int i = 0; i < MR; ++i) {
      FF_UNROLL(8)
      for (int j = 0; j < NR; ++j) store(values + (i * NR + j) * L, acc[i][j]);
    }
    activate_vectors(a.act, values, MR * NR);
    FF_UNROLL(16)
    for (int i = 0; i < MR; ++i) {
      FF_UNROLL(8)
      for (int j = 0; j < NR; ++j) acc[i][j] = load(values + (i * NR + j) * L);
    }
  }
}

// An epilogue in the form that tiles read; residual: at the tile's first pixel and block, or null.
struct Finish {
  Activation act, after;
  const float* residual;
  idx residual_block;
};

FF_INLINE Finish finish_of(const Epilogue& e) {
  return {activation_of(e.act), activation_of(e.after), nullptr, e.residual.block};
}

template <int MR, int NR>
FF_INLINE void finish_tile(vecf (&acc)[MR][NR], const Finish& f, const float* residual, float* y, idx y_block) {
  activate_tile<MR, NR>(acc, f.act);
  if (residual) {
    FF_UNROLL(8)
    for (int j = 0; j < NR; ++j) {
      FF_UNROLL(16)
      for (int i = 0; i < MR; ++i) acc[i][j] = acc[i][j] + load(residual + j * f.residual_block + i * L);
    }
    if (f.after.act != Act::none) activate_tile<MR, NR>(acc, f.after);
  }
  FF_UNROLL(8)
  for (int j = 0; j < NR; ++j) {
    FF_UNROLL(16)
    for (int i = 0; i < MR; ++i) store(y + j * y_block + i * L, acc[i][j]);
  }
}

// The larger of the two, or NaN when either is one.
FF_INLINE vecf running_max(vecf most, vecf v) { return (v > most) | (v != v) ? v : most; }

FF_INLINE bool wanted(const Pools& p) { return p.line_sum || p.line_max || p.column_sum || p.column_max; }

// Pools of row `row` of one channel block, `width` pixels at y. Four sums in turn hide the latency of the addition.
FF_NOINLINE void pool_row(const Pools& p, const float* y, idx block, idx row, idx height, idx width) {
  if (p.line_sum || p.line_max) {
    vecf sum[4] = {}, most[4];
    for (int u = 0; u < 4; ++u) most[u] = splat(-__builtin_inff());
    idx x = 0;
    for (; x + 4 <= width; x += 4) {
      FF_UNROLL(4)
      for (int u = 0; u < 4; ++u) {
        const vecf v = load(y + (x + u) * L);
        sum[u] = sum[u] + v, most[u] = running_max(most[u], v);
      }
    }
    for (; x < width; ++x) {
      const vecf v = load(y + x * L);
      sum[0] = sum[0] + v, most[0] = running_max(most[0], v);
    }
    const idx at = (block * height + row) * L;
    if (p.line_sum) store(p.line_sum + at, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    if (p.line_max) store(p.line_max + at, running_max(running_max(most[0], most[1]), running_max(most[2], most[3])));
  }
  if (p.column_sum) {
    float* to = p.column_sum + block * width * L;
    for (idx x = 0; x < width; ++x) store(to + x * L, row == 0 ? load(y + x * L) : load(to + x * L) + load(y + x * L));
  }
  if (p.column_max) {
    float* to = p.column_max + block * width * L;
    for (idx x = 0; x < width; ++x)
      store(to + x * L, row == 0 ? load(y + x * L) : running_max(load(to + x * L), load(y + x * L)));
  }
}

// The pools of the part just written.
FF_INLINE void pool_part(const Pools& pools, const Map& y, idx y0, idx y1, idx b0, idx b1) {
  if (!wanted(pools)) return;
  for (idx b = b0; b < b1; ++b)
    for (idx i = y0; i < y1; ++i) pool_row(pools, y.data + b * y.block + i * y.row, b, i, y.height, y.width);
}

FF_INLINE idx blocks_of(idx channels) { return ceil_div(channels, L); }

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
