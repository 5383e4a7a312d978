// SPDX-License-Identifier: Apache-2.0
// What forward and backward share: typed views of the parameters, and how images are cut into tasks.
#pragma once
#include "cbam/mlp.h"
#include "cbam/op.h"
#include "cbam/pixels.h"
#include "cbam/planes.h"

namespace ff {
namespace FF_ISA {
namespace {

template <class T>
FF_INLINE const T* input(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
FF_INLINE T* output(void* p) {
  return static_cast<T*>(p);
}

template <class T>
struct Shape {
  Pixels<T> px;
  Border border;
  idx image, n;   // elements of an image; images
  idx columns;    // of vectors of channels, repeated and padded

  explicit Shape(const CbamParams& p)
      : px(p.h * p.w, p.c), border(::ff::FF_ISA::border<T>(p.h, p.w, p.k)), image(p.h * p.w * p.c), n(p.n),
        columns(round_up_lanes<T>(px.columns())) {}

  // Images that make up about `bytes` of activations.
  idx images_of(idx bytes) const { return max_idx(1, bytes / max_idx(1, image * static_cast<idx>(sizeof(T)))); }
};

// Scratch of one image's plane enclosed in zeros.
template <class T>
FF_INLINE T* take_border(Arena& a, const Border& b) {
  return a.take<T>(b.stride * b.rows);
}
template <class T>
FF_INLINE void clear_border(const Border& b, T* padded) {
  if (padded) fill_zero(padded, b.stride * b.rows);
}

// scale and shift of the norm with the statistics [3].
template <class T>
FF_INLINE void norm_line(const CbamParams& p, const T* stats, T* scale, T* shift) {
  const double slope = static_cast<double>(*input<T>(p.norm_weight)) * stats[1];
  *scale = static_cast<T>(slope);
  *shift = static_cast<T>(static_cast<double>(*input<T>(p.norm_bias)) - slope * stats[0]);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
