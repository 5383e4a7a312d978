// SPDX-License-Identifier: Apache-2.0
// Rows of the expansion act(norm1(pointwise(x))) where a depthwise convolution reads them: in L2, a slice of the
// channels at a time, computed from x when they are needed. Rows that the next band of output rows needs too are kept.
#pragma once
#include "bottleneck/op.h"
#include "norm/vectors.h"
#include "separable_conv/depthwise_pass.h"
#include "separable_conv/pointwise_pass.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr idx kExpansionBand = 128 << 10;  // bytes of expansion that a band of output rows adds

// The channels in slices of whole vectors: all where an image of them is small or they are few.
struct Slices {
  idx channels, width, count;

  FF_CLASS_INLINE idx begin(idx slice) const { return slice * width; }
  FF_CLASS_INLINE idx size(idx slice) const { return min_idx(width, channels - slice * width); }
};

template <class T>
FF_INLINE Slices channel_slices(const DepthwiseShape& s) {
  constexpr idx kMost = 128;
  const bool whole = s.c <= kMost || s.h * s.w * s.c * static_cast<idx>(sizeof(T)) <= kExpansionBand;
  const idx width = whole ? s.c : round_up_lanes<T>(ceil_div(s.c, ceil_div(s.c, kMost)));
  return {s.c, width, ceil_div(s.c, width)};
}

template <class T>
FF_INLINE Bands expansion_bands(const DepthwiseShape& s, const Slices& slices) {
  return Bands(s, s.sh * s.w * slices.width * static_cast<idx>(sizeof(T)), kExpansionBand);
}

// Rows [first, end) of an image, `row` elements each.
template <class T>
struct RowWindow {
  T* base;
  idx row, first = 0, end = 0;

  FF_CLASS_INLINE T* at(idx y) const { return base + (y - first) * row; }
  // Where row 0 would be.
  FF_CLASS_INLINE T* origin() const { return base - first * row; }
  // Moves on to [lo, hi); returns the first row of it that is not there yet.
  FF_CLASS_INLINE idx advance(idx lo, idx hi) {
    const idx kept = lo >= first && lo < end ? end - lo : 0;
    if (kept && lo > first) __builtin_memmove(base, at(lo), static_cast<size_t>(kept * row) * sizeof(T));
    first = lo, end = max_idx(hi, lo + kept);
    return lo + kept;
  }
};

template <class T>
struct Expansion {
  DepthwiseShape s;
  idx in;
  Slices slices;
  Act act;
  const T* x;
  T* packed;         // by slices, the norm's scale folded in
  const T* shift;

  void take(Arena& a) { packed = a.take<T>(slices.count * round_up_lanes<T>(slices.width) * in); }
  FF_CLASS_INLINE T* packed_slice(idx slice) const { return packed + slice * (round_up_lanes<T>(slices.width) * in); }

  void pack(const T* weight, const T* scale, int threads) const {
    for (idx i = 0; i < slices.count; ++i)
      pack_pointwise<T>(packed_slice(i), weight + slices.begin(i) * in, scale + slices.begin(i), in, slices.size(i),
                        threads);
  }
  // The slice's part of the shape.
  FF_CLASS_INLINE DepthwiseShape part(idx slice) const {
    DepthwiseShape one = s;
    one.c = slices.size(slice);
    return one;
  }
  FF_CLASS_INLINE idx rows_in_window(const Bands& bands) const { return min_idx(s.h, (bands.rows + 1) * s.sh + s.kh); }

  // z and act(z) of rows [begin, end) of an image; z may be a, then only act(z) is left. No row: nothing.
  FF_CLASS_INLINE void rows(idx slice, idx image, idx begin, idx end, T* z, T* a) const {
    if (end <= begin) return;
    const idx pixels = (end - begin) * s.w, c = slices.size(slice);
    T lo = T(-kInfinity), hi = T(kInfinity);
    const bool done = z == a && clamp_bounds(act, &lo, &hi);
    if (z != a) lo = T(-kInfinity), hi = T(kInfinity);
    const T* from = x + (image * s.h + begin) * s.w * in;
    Ahead next;
    if (slice == 0) {
      const idx left = s.n * s.h - image * s.h - end;
      next.add(from + pixels * in, min_idx(left, end - begin) * s.w * in * static_cast<idx>(sizeof(T)));
    }
    gemm<T, false>({.a = from,
                    .lda = in,
                    .b = packed_slice(slice),
                    .c = z,
                    .ldc = c,
                    .rows = pixels,
                    .cols = c,
                    .depth = in,
                    .bias = shift + slices.begin(slice),
                    .lo = lo,
                    .hi = hi,
                    .ahead = &next});
    if (!done) affine_act_rows<T>(a, c, z, c, pixels, c, nullptr, nullptr, act);
  }
};

// First input row that output row oy and those below it read, of [0, h].
FF_INLINE idx input_row(const DepthwiseShape& s, idx oy) { return max_idx(0, min_idx(s.h, oy * s.sh - s.top)); }

// The row after the last that output row oy reads.
FF_INLINE idx input_end(const DepthwiseShape& s, idx oy) { return max_idx(0, min_idx(s.h, oy * s.sh - s.top + s.kh)); }

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
