// SPDX-License-Identifier: Apache-2.0
// Sums and maxima over the lines and columns of channel blocks that were just written, in one pass over them.
#pragma once
#include "engine/kernels/finish.h"
#include "simd/lanes.h"

namespace ff {
namespace FF_ISA {
namespace {

// A sum, and a maximum that a NaN wins if Exact; else only if it comes last: then the sum is NaN too, and tells.
template <bool Exact>
struct Pooled {
  vecf sum, most;
  FF_CLASS_INLINE void add(vecf s, vecf m) {
    sum = sum + s;
    most = Exact ? m > most ? m : (m == m ? most : m) : max_bound(m, most);
  }
  FF_CLASS_INLINE void read(const float* s, const float* m) {
    sum = s ? load(s) : vecf{}, most = m ? load(m) : splat(-__builtin_inff());
  }
  FF_CLASS_INLINE void write(float* s, float* m) const {
    if (s) store(s, sum);
    if (m) store(m, most);
  }
};

// TX columns of `rows` rows at y; `at` points at the first of these columns and rows; `top`, `start`: they are the
// first of all rows or columns. Returns the sum of everything.
template <int TX, bool Columns, bool Exact>
FF_INLINE vecf pool_group(const Pools& at, const float* y, idx row, idx rows, bool top, bool start) {
  Pooled<Exact> column[TX], line;
  vecf total = {};
  FF_UNROLL(8)
  for (int i = 0; Columns && i < TX; ++i)
    column[i].read(top ? nullptr : offset(at.column_sum, i * L), top ? nullptr : offset(at.column_max, i * L));
  for (idx r = 0; r < rows; ++r, y += row) {
    line.read(start ? nullptr : offset(at.line_sum, r * L), start ? nullptr : offset(at.line_max, r * L));
    Pooled<Exact> half = {vecf{}, splat(-__builtin_inff())};
    FF_UNROLL(8)
    for (int i = 0; i < TX; ++i) {
      const vecf v = load(y + i * L);
      (i % 2 ? half : line).add(v, v);
      if (Columns) column[i].add(v, v);
    }
    line.add(half.sum, half.most);
    line.write(offset(at.line_sum, r * L), offset(at.line_max, r * L));
    total = total + line.sum;
  }
  FF_UNROLL(8)
  for (int i = 0; Columns && i < TX; ++i) column[i].write(offset(at.column_sum, i * L), offset(at.column_max, i * L));
  return total;
}

template <bool Columns, bool Exact>
FF_NOINLINE vecf pool_block(const Pools& p, const float* y, idx row, idx width, idx y0, idx y1) {
  constexpr int kGroup = kRegisters == 32 ? 7 : 4;
  constexpr idx kLines = Columns ? 1 << 30 : 1;  // lines alone: row by row, as memory goes
  vecf total = {};
  for (idx i = y0; i < y1; i += kLines) {
    const idx rows = min_idx(kLines, y1 - i);
    for (idx x = 0; x < width;) {
      const Pools at{offset(p.line_sum, i * L), offset(p.line_max, i * L), offset(p.column_sum, x * L),
                     offset(p.column_max, x * L)};
      const float* from = y + i * row + x * L;
      if (width - x >= kGroup)
        total = total + pool_group<kGroup, Columns, Exact>(at, from, row, rows, i == 0, x == 0), x += kGroup;
      else
        total = total + pool_group<1, Columns, Exact>(at, from, row, rows, i == 0, x == 0), ++x;
    }
  }
  return total;
}

// The pools of rows [part.y0, part.y1) of blocks [b0, b1).
FF_INLINE void pool_part(const Pools& p, const Map& y, Part part, idx b0, idx b1) {
  const bool columns = p.column_sum || p.column_max;
  if (!columns && !p.line_sum && !p.line_max) return;
  for (idx b = b0; b < b1; ++b) {
    const idx line = b * y.height * L, column = b * y.width * L;
    const Pools at{offset(p.line_sum, line), offset(p.line_max, line), offset(p.column_sum, column),
                   offset(p.column_max, column)};
    const float* from = y.data + b * y.block;
    const auto pass = [&](auto plain, auto exact) {
      const float total = sum_lanes<float>(plain(at, from, y.row, y.width, part.y0, part.y1));
      if (total != total) exact(at, from, y.row, y.width, part.y0, part.y1);
    };
    columns ? pass(pool_block<true, false>, pool_block<true, true>)
            : pass(pool_block<false, false>, pool_block<false, true>);
  }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
