// SPDX-License-Identifier: Apache-2.0
// Functions of one, two and three maps, element by element.
#pragma once
#include "engine/kernels/functions.h"

namespace ff {
namespace FF_ISA {
namespace {

template <UnaryOp F>
FF_NOINLINE void unary_rows(const tensors::Unary& p, Part part) {
  for (idx block = part.b0; block < part.b1; ++block) {
    const vecf a = load(p.a + block * L), b = load(p.b + block * L);
    for (idx y = part.y0; y < part.y1; ++y) {
      const float* from = at(p.x, block, y);
      float* to = at(p.y, block, y);
      for (idx x = 0; x < p.y.width * L; x += L) store(to + x, unary_value<F>(load(from + x), a, b));
    }
  }
}

static void unary(const tensors::Unary& p, Part part) {
  with_choice(p.function, [&](auto tag) { unary_rows<decltype(tag)::value>(p, part); });
}

// A map of which some axes are repeated: the vectors of a row of y.
struct Repeated {
  const float* row;
  idx pixel;
  bool one_channel;

  FF_CLASS_INLINE Repeated(const Map& m, const Map& y, idx block, idx row_of_y)
      : row(m.data + (m.channels == 1 ? 0 : block * m.block) + (m.height == 1 ? 0 : row_of_y * m.row)),
        pixel(m.width == 1 ? 0 : L), one_channel(m.channels == 1 && y.channels > 1) {}
  FF_CLASS_INLINE vecf operator()(idx x) const {
    const float* p = row + x * pixel;
    return one_channel ? splat(*p) : load(p);
  }
};

template <BinaryOp F>
FF_NOINLINE void binary_rows(const tensors::Binary& p, Part part) {
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx y = part.y0; y < part.y1; ++y) {
      const Repeated a(p.a, p.y, block, y), b(p.b, p.y, block, y);
      float* to = at(p.y, block, y);
      for (idx x = 0; x < p.y.width; ++x) store(to + x * L, binary_value<F>(a(x), b(x)));
    }
}

static void binary_of(const tensors::Binary& p, Part part) {
  with_choice(p.function, [&](auto tag) { binary_rows<decltype(tag)::value>(p, part); });
}

FF_NOINLINE void select_of(const tensors::Select& p, Part part) {
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx y = part.y0; y < part.y1; ++y) {
      const Repeated which(p.condition, p.y, block, y), a(p.a, p.y, block, y), b(p.b, p.y, block, y);
      float* to = at(p.y, block, y);
      for (idx x = 0; x < p.y.width; ++x) store(to + x * L, which(x) != vecf{} ? a(x) : b(x));
    }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
