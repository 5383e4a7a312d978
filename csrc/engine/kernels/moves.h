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

FF_INLINE vecf permuted(vecf v, i32v lanes) {
#if defined(__clang__)
  return __builtin_shufflevector(v, lanes);
#else
  return __builtin_shuffle(v, lanes);
#endif
}

// What a block of y takes from a block of an input: its lanes moved, and which of them count.
struct TakenLanes {
  const float* row;
  i32v from, here;

  FF_CLASS_INLINE void read(const tensors::Channels& p, idx i, idx y) {
    const int* lanes = p.lanes + i * L;
    row = at(p.x[p.input[i]], p.block[i], y);
    __builtin_memcpy(&from, lanes, sizeof from);
    here = from >= 0;
    from = here ? from : i32v{};
  }
  FF_CLASS_INLINE vecf add(vecf v, idx x) const { return here ? permuted(load(row + x * L), from) : v; }
};

// N parts of one row of a block, whose other lanes stay as they are, or are zero before the first.
template <int N>
FF_INLINE void take_lanes(const tensors::Channels& p, idx i, bool first, idx y, float* to) {
  TakenLanes t[N];
  FF_UNROLL(2)
  for (int k = 0; k < N; ++k) t[k].read(p, i + k, y);
  for (idx x = 0; x < p.y.width; ++x, to += L) {
    vecf v = first ? vecf{} : load(to);
    FF_UNROLL(2)
    for (int k = 0; k < N; ++k) v = t[k].add(v, x);
    store(to, v);
  }
}

FF_NOINLINE void take_channels(const tensors::Channels& p, Part part) {
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx y = part.y0; y < part.y1; ++y) {
      float* to = at(p.y, block, y);
      const idx begin = p.first[block], end = p.first[block + 1];
      idx i = begin;
      for (; i + 2 <= end; i += 2) take_lanes<2>(p, i, i == begin, y, to);
      if (i < end) take_lanes<1>(p, i, i == begin, y, to);
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
