// SPDX-License-Identifier: Apache-2.0
// What follows a tile's sums: activation and residual, in registers where these suffice.
#pragma once
#include "engine/kernels/logistic.h"

namespace ff {
namespace FF_ISA {
namespace {

// The larger of each lane, and NaN where either is one, as torch's poolings have it: max_bound keeps a NaN of its
// first.
FF_INLINE vecf larger(vecf v, vecf most) { return most == most ? max_bound(v, most) : most; }

using engine::Conv;
using engine::Epilogue;
using engine::Part;
using engine::Pools;
using engine::Window;

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

FF_INLINE bool in_registers(Act act) { return act != Act::silu && act != Act::sigmoid; }
FF_INLINE bool in_registers(const Epilogue& e) {
  return in_registers(e.act) && (!e.residual.data || in_registers(e.after));
}

// An epilogue in the form that tiles read, with the places of pixel 0 of the row and of the first block.
struct Finish {
  Activation act, after;
  bool has_after;
  float* y;
  idx y_block;
  const float* residual;
  idx residual_block;
};

// An epilogue that registers cannot do is left to finish_rows; then there is no residual in the tiles.
FF_INLINE Finish finish_of(const Epilogue& e, const Map& y) {
  return {activation_of(in_registers(e) ? e.act : Act::none),
          activation_of(e.after),
          e.after != Act::none,
          nullptr,
          y.block,
          nullptr,
          e.residual.block};
}

FF_INLINE void finish_at(Finish& f, const Epilogue& e, const Map& y, idx b, idx row) {
  f.y = y.data + b * y.block + row * y.row;
  f.residual =
      e.residual.data && in_registers(e) ? e.residual.data + b * e.residual.block + row * e.residual.row : nullptr;
}

// Activates, adds the residual, and stores: pixels from element `at` of the row on. No lambda may hold the
// accumulators: GCC 12 then writes each of them to the stack in every round of the loop before.
template <int MR, int NR>
FF_INLINE void finish_tile(vecf (&acc)[MR][NR], const Finish& f, idx at) {
  activate_tile<MR, NR>(acc, f.act);
  if (f.residual) {
    const float* from = f.residual + at;
    FF_UNROLL(8)
    for (int j = 0; j < NR; ++j) {
      FF_UNROLL(16)
      for (int i = 0; i < MR; ++i) acc[i][j] = acc[i][j] + load(from + j * f.residual_block + i * L);
    }
    if (f.has_after) activate_tile<MR, NR>(acc, f.after);
  }
  float* to = f.y + at;
  FF_UNROLL(8)
  for (int j = 0; j < NR; ++j) {
    FF_UNROLL(16)
    for (int i = 0; i < MR; ++i) store(to + j * f.y_block + i * L, acc[i][j]);
  }
}

FF_NOINLINE void activate_row(Act act, float* y, idx width) {
  with_act(act, [&](auto tag) {
    for (idx i = 0; i < width; ++i) store(y + i * L, quick_act<decltype(tag)::value>(load(y + i * L)));
  });
}

// Rows that a kernel computes before it finishes them, if it must: about as many as stay in the first-level cache.
FF_INLINE idx rows_to_finish(const Epilogue& e, const Map& y, idx rows) {
  constexpr idx kPixels = 96;
  return in_registers(e) ? rows : min_idx(rows, max_idx(1, kPixels / y.width));
}

// Finishes the sums that tiles left in rows [y0, y1) of blocks [b0, b1), if they did.
FF_INLINE void finish_rows(const Epilogue& e, const Map& y, idx y0, idx y1, idx b0, idx b1) {
  if (in_registers(e)) return;
  for (idx b = b0; b < b1; ++b)
    for (idx i = y0; i < y1; ++i) {
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
