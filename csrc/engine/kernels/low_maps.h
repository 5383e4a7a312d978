// SPDX-License-Identifier: Apache-2.0
// Maps from one type to another, gates applied on the way, and the pools of maps of any type.
#pragma once
#include "engine/kernels/low_types.h"
#include "simd/lanes.h"

namespace ff {
namespace FF_ISA {
namespace {

using engine::Gates;

FF_INLINE bool any(const Gates& g) { return g.channel || g.line || g.column || g.pixel; }

// Channels that do not exist become zeros, where products read some of them with the last that does: float32 may hold
// what a logarithm made of nothing.
template <class X, class Y>
FF_NOINLINE void gate_rows(const Map& x, Type x_type, const Quant& x_quant, const Gates& g, const Map& y, Type y_type,
                           const Quant& y_quant, Part part) {
  for (idx b = part.b0; b < part.b1; ++b) {
    const i32v real = lane_numbers<float>() < static_cast<int>(x.channels - b * L);
    const vecf channel = g.channel ? load(g.channel + b * L) : splat(1.f);
    for (idx i = part.y0; i < part.y1; ++i) {
      const vecf line = g.line ? channel * load(g.line + (b * x.height + i) * L) : channel;
      const float* column = g.column ? g.column + b * x.width * L : nullptr;
      const float* pixel = g.pixel ? g.pixel + i * x.width : nullptr;
      const X* from = reinterpret_cast<const X*>(place(x, x_type, b, i));
      Y* to = reinterpret_cast<Y*>(place(y, y_type, b, i));
      for (idx j = 0; j < x.width; ++j) {
        vecf v = load_as(from + j * L, x_quant) * line;
        if (column) v = v * load(column + j * L);
        if (pixel) v = v * splat(pixel[j]);
        if (sizeof(Y) < sizeof(float)) v = real ? v : vecf{};
        store_as(to + j * L, v, y_quant);
      }
    }
  }
}

FF_INLINE void gate_as(const Map& x, Type x_type, const Quant& x_quant, const Gates& g, const Map& y, Type y_type,
                       const Quant& y_quant, Part part) {
  with_type(x_type, [&](auto from) {
    with_type(y_type, [&](auto to) {
      using X = typename decltype(from)::type;
      using Y = typename decltype(to)::type;
      gate_rows<X, Y>(x, x_type, x_quant, g, y, y_type, y_quant, part);
    });
  });
}

static void gate(const Map& x, const Gates& g, const Map& y, Part part) {
  gate_as(x, Type::float32, {}, g, y, Type::float32, {}, part);
}

static void convert(const Map& x, Type x_type, const Quant& x_quant, const Map& y, Type y_type, const Quant& y_quant,
                    Part part) {
  gate_as(x, x_type, x_quant, {}, y, y_type, y_quant, part);
}

// Adds a row's values to the sum and the maximum of its line and of each of its columns, those there are; `top`: it is
// the first row.
template <class T>
FF_NOINLINE void pool_row(const Pools& at, const T* y, const Quant& quant, idx width, bool top) {
  const vecf least = splat(-__builtin_inff());
  vecf sum = {}, most = least;
  for (idx x = 0; x < width * L; x += L) {
    const vecf v = load_as(y + x, quant);
    sum = sum + v, most = larger(v, most);
    if (at.column_sum) store(at.column_sum + x, top ? v : load(at.column_sum + x) + v);
    if (at.column_max) store(at.column_max + x, larger(v, top ? least : load(at.column_max + x)));
  }
  if (at.line_sum) store(at.line_sum, sum);
  if (at.line_max) store(at.line_max, most);
}

// The pools of rows [part.y0, part.y1) of blocks [b0, b1), of what was just stored.
FF_NOINLINE void pool_part(const Pools& p, const Map& y, Type type, const Quant& quant, Part part, idx b0, idx b1) {
  if (!p.column_sum && !p.column_max && !p.line_sum && !p.line_max) return;
  with_type(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (idx b = b0; b < b1; ++b)
      for (idx i = part.y0; i < part.y1; ++i) {
        const idx line = (b * y.height + i) * L, column = b * y.width * L;
        pool_row({offset(p.line_sum, line), offset(p.line_max, line), offset(p.column_sum, column),
                  offset(p.column_max, column)},
                 reinterpret_cast<const T*>(place(y, type, b, i)), quant, y.width, i == 0);
      }
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
