// SPDX-License-Identifier: Apache-2.0
// Elements of maps moved to other places.
#pragma once
#include "engine/kernels/tensor.h"

namespace ff {
namespace FF_ISA {
namespace {

FF_INLINE void gather_lanes(const float* from, const int* places, float fill, float* to) {
  for (idx l = 0; l < L; ++l) to[l] = places[l] < 0 ? fill : from[places[l]];
}

FF_NOINLINE void gather_pixels(const tensors::GatherPixels& p, Part part) {
  const vecf fill = splat(p.fill);
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx y = part.y0; y < part.y1; ++y) {
      float* to = at(p.y, block, y);
      const int row = p.rows[y], whole = p.whole[block];
      const float* line = p.x.data + max_idx(row, 0) * p.x.row + max_idx(whole, 0);
      for (idx x = 0; x < p.y.width; ++x, to += L) {
        const int column = p.columns[x];
        if (row < 0 || column < 0)
          store(to, fill);
        else if (whole >= 0)
          store(to, load(line + column * L));
        else
          gather_lanes(line + column * L, p.channels + block * L, p.fill, to);
      }
    }
}

FF_NOINLINE void gather_any(const tensors::GatherAny& p, Part part) {
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx y = part.y0; y < part.y1; ++y) {
      const int* from = p.from + (block * p.y.height + y) * p.y.width * L;
      float* to = at(p.y, block, y);
      for (idx x = 0; x < p.y.width; ++x) gather_lanes(p.x.data, from + x * L, p.fill, to + x * L);
    }
}

FF_NOINLINE void put(const tensors::Put& p, Part part) {
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx y = max_idx(part.y0, p.top); y < min_idx(part.y1, p.top + idx{p.x.height}); ++y) {
      const float* from = at(p.x, block, y - p.top);
      float* to = at(p.y, block, y, p.left);
      for (idx x = 0; x < p.x.width * L; x += L) store(to + x, load(from + x));
    }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
