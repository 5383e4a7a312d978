// SPDX-License-Identifier: Apache-2.0
// How backward is cut: into chunks of images, or bands of rows of one, with partial weight gradients of their own. A
// chunk owns rows of dx.
#pragma once
#include "conv2d/pooled.h"
#include "conv2d/weights.h"

namespace ff {
namespace FF_ISA {
namespace {

template <class T>
struct ConvBackward {
  ConvShape s;
  PointwiseBackward<T> out;    // from dout to dy, `times` pixels as one row, see Wide; and db
  idx times;
  const T *x, *weight;
  T *dx, *dw;                  // null where not wanted
  int threads;
};

// Rows [begin, end) of output and of dx that a chunk owns, over all images, and where it begins to compute for dx.
struct ConvChunk {
  idx halo, begin, end, dx_begin, dx_end;
};

struct ConvChunks {
  idx count, bands, unit;      // bands of an image, in multiples of `unit` rows; bands 1: chunks are of whole images

  FF_CLASS_INLINE ConvChunk at(const ConvShape& s, idx chunk) const {
    if (bands == 1) {
      const idx first = s.n * chunk / count, last = s.n * (chunk + 1) / count;
      return {first * s.oh, first * s.oh, last * s.oh, first * s.h, last * s.h};
    }
    const idx image = chunk / bands, band = chunk % bands;
    const idx units = ceil_div(s.oh, unit), reach = (s.kh - 1) / s.sh;
    const idx begin = units * band / bands * unit, end = min_idx(s.oh, units * (band + 1) / bands * unit);
    const auto dx_row = [&](idx row) { return min_idx(s.h, max_idx(0, row * s.sh - s.top)); };
    return {image * s.oh + max_idx(0, begin - reach), image * s.oh + begin, image * s.oh + end,
            image * s.h + (band == 0 ? 0 : dx_row(begin)), image * s.h + (band == bands - 1 ? s.h : dx_row(end))};
  }
};

template <class T>
FF_INLINE ConvChunks conv_chunks(const ConvShape& s, idx unit) {
  const idx wanted = backward_chunks<T>(s.n * s.oh * s.ow, s.c * s.kh * s.kw, s.o);
  if (wanted <= s.n || s.n == 0) return {wanted, 1, unit};
  const idx bands = max_idx(1, min_idx(ceil_div(wanted, s.n), s.oh / (2 * max_idx(s.kh, unit))));
  return {s.n * bands, bands, unit};
}

// Whether the window's values, or else the outputs, are the columns of the weight gradient: what fills vectors better.
template <class T>
FF_INLINE bool windows_are_columns(idx depth, idx o) {
  return ceil_div(depth, lanes<T>) * o < ceil_div(o, lanes<T>) * depth;
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
