// SPDX-License-Identifier: Apache-2.0
// What follows a tile's sums: activation and residual, in registers where these suffice.
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

FF_INLINE idx blocks_of(idx channels) { return ceil_div(channels, L); }

// What runs in registers: none, relu and relu6 are a clamp, hardsigmoid is one of v/6 + 1/2, hardswish is v times that.
enum class Form : int { clamp, hardswish, hardsigmoid };

struct Activation {
  Form form;
  float lo, hi;
};

FF_INLINE Activation activation_of(Act act) {
  const float inf = __builtin_inff();
  switch (act) {
    case Act::relu: return {Form::clamp, 0.f, inf};
    case Act::relu6: return {Form::clamp, 0.f, 6.f};
    case Act::hardswish: return {Form::hardswish, 0.f, 1.f};
    case Act::hardsigmoid: return {Form::hardsigmoid, 0.f, 1.f};
    default: return {Form::clamp, -inf, inf};
  }
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
  } else {
    FF_UNROLL(16)
    for (int i = 0; i < MR; ++i) {
      FF_UNROLL(8)
      for (int j = 0; j < NR; ++j) acc[i][j] = ramp(acc[i][j], lo, hi);
    }
  }
}

// An epilogue in the form that tiles read; residual: at the tile's first pixel and block, or null.
struct Finish {
  Activation act, after;
  bool has_after;
  const float* residual;
  idx residual_block;
};

FF_INLINE bool in_registers(Act act) { return act != Act::silu && act != Act::sigmoid; }
FF_INLINE bool in_registers(const Epilogue& e) { return in_registers(e.act) && (!e.residual.data || in_registers(e.after)); }

// An epilogue that registers cannot do is left to finish_part; then there is no residual in the tiles.
FF_INLINE Finish finish_of(const Epilogue& e) {
  if (!in_registers(e)) return {activation_of(Act::none), activation_of(Act::none), false, nullptr, 0};
  return {activation_of(e.act), activation_of(e.after), e.after != Act::none, nullptr, e.residual.block};
}

// Where pixel 0 of row y of block b of the residual stands, for tiles; null if they add none.
FF_INLINE const float* residual_at(const Epilogue& e, idx y, idx b) {
  return e.residual.data && in_registers(e) ? e.residual.data + b * e.residual.block + y * e.residual.row : nullptr;
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
    if (f.has_after) activate_tile<MR, NR>(acc, f.after);
  }
  FF_UNROLL(8)
  for (int j = 0; j < NR; ++j) {
    FF_UNROLL(16)
    for (int i = 0; i < MR; ++i) store(y + j * y_block + i * L, acc[i][j]);
  }
}

FF_NOINLINE void activate_row(Act act, float* y, idx width) {
  with_act(act, [&](auto tag) {
    for (idx i = 0; i < width; ++i) store(y + i * L, activate<decltype(tag)::value, float>(load(y + i * L)));
  });
}

// Finishes the sums that tiles left in rows of blocks [b0, b1), if they did.
FF_INLINE void finish_part(const Epilogue& e, const Map& y, Part part, idx b0, idx b1) {
  if (in_registers(e)) return;
  for (idx b = b0; b < b1; ++b)
    for (idx i = part.y0; i < part.y1; ++i) {
      float* to = y.data + b * y.block + i * y.row;
      activate_row(e.act, to, y.width);
      if (!e.residual.data) continue;
      const float* from = e.residual.data + b * e.residual.block + i * e.residual.row;
      for (idx x = 0; x < y.width; ++x) store(to + x * L, load(to + x * L) + load(from + x * L));
      activate_row(e.after, to, y.width);
    }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
