// SPDX-License-Identifier: Apache-2.0
// The windows of a convolution as rows of a matrix, for a block of them at a time that stays in L2: gathered from the
// image for a product with the weights, and their gradients added back. A window's values are in the order (row,
// column, channel), so that each of its rows is a run of memory.
#pragma once
#include "conv2d/op.h"
#include "simd/arena.h"

namespace ff {
namespace FF_ISA {
namespace {

// Windows at (i·sh - top, j·sw - left) of images [h][w][c], i < oh, j < ow, numbered over images, rows and columns.
struct Windows {
  idx n, h, w, c, oh, ow, kh, kw, sh, sw, top, left;

  // With a group, the windows of that many neighbours in a row as one; ow is a multiple of it.
  explicit Windows(const ConvShape& s, idx group = 1)
      : n(s.n), h(s.h), w(s.w), c(s.c), oh(s.oh), ow(s.ow / group), kh(s.kh), kw(s.kw + (group - 1) * s.sw), sh(s.sh),
        sw(s.sw * group), top(s.top), left(s.left) {}
  FF_CLASS_INLINE idx run() const { return kw * c; }
  FF_CLASS_INLINE idx depth() const { return kh * kw * c; }
  // Keeps of the columns j of [first, end) those whose window has its column l inside the image; end <= first: none.
  FF_CLASS_INLINE void inside(idx l, idx* first, idx* end) const {
    *first = max_idx(*first, l < left ? ceil_div(left - l, sw) : 0);
    *end = min_idx(*end, w - 1 + left - l < 0 ? 0 : (w - 1 + left - l) / sw + 1);
  }
};

// Calls body(line, at, count, done) for the parts of lines of `length` each that elements [first, first + count) are
// made of: of windows in rows, or rows in images.
template <class Body>
FF_INLINE void for_parts(idx length, idx first, idx count, const Body& body) {
  for (idx done = 0; done < count;) {
    const idx at = (first + done) % length, part = min_idx(length - at, count - done);
    body((first + done) / length, at, part, done);
    done += part;
  }
}

// dst rows = src rows of n values, in whole vectors: up to a vector less one value beyond n is read and written.
template <class T>
FF_INLINE void copy_whole(T* dst, idx dst_stride, const T* src, idx src_stride, idx n, idx rows) {
  for (idx r = 0; r < rows; ++r, dst += dst_stride, src += src_stride)
    for (idx k = 0; k < n; k += lanes<T>) store(dst + k, load(src + k));
}

template <class T>
FF_INLINE void copy_exact(T* dst, const T* src, idx n) {
  for_lanes<T>(n, [&](idx k, idx valid) { store_n<T>(dst + k, load_n<T>(src + k, valid), valid); });
}

// dst [count][stride] = windows [first, first + count) of x; stride leaves a vector's room after each.
template <class T>
FF_NOINLINE void gather_windows(const Windows& s, const T* x, idx first, idx count, T* dst, idx stride) {
  const idx run = s.run(), L = lanes<T>;
  const T* x_end = x + s.n * s.h * s.w * s.c;
  for_parts(s.ow, first, count, [&](idx row, idx column, idx columns, idx done) {
    idx in_first = column, in_end = column + columns;
    s.inside(0, &in_first, &in_end);
    s.inside(s.kw - 1, &in_first, &in_end);
    if (in_end <= in_first) in_first = in_end = column + columns;
    for (idx k = 0; k < s.kh; ++k) {
      const idx y = row % s.oh * s.sh + k - s.top;
      T* out = dst + done * stride + k * run;
      const T* line = x + (row / s.oh * s.h + y) * s.w * s.c;
      const auto at_border = [&](idx j) {
        idx lo = j * s.sw - s.left, hi = min_idx(lo + s.kw, s.w);
        const idx skipped = max_idx(0, -lo);
        lo = max_idx(lo, 0), hi = max_idx(lo, hi);
        T* window = out + (j - column) * stride;
        const idx outside = min_idx(run, skipped * s.c), length = (hi - lo) * s.c;
        fill_zero(window, outside);
        copy_exact(window + outside, line + lo * s.c, length);
        fill_zero(window + outside + length, run - outside - length);
      };
      if (y < 0 || y >= s.h) {
        for (idx j = column; j < column + columns; ++j) fill_zero(out + (j - column) * stride, run);
        continue;
      }
      for (idx j = column; j < in_first; ++j) at_border(j);
      if (in_end > in_first) {
        const T* from = line + (in_first * s.sw - s.left) * s.c;
        T* to = out + (in_first - column) * stride;
        idx whole = in_end - in_first;  // the last vector of a window must not reach beyond x
        while (whole > 0 && x_end - (from + (whole - 1) * s.sw * s.c) < ceil_div(run, L) * L) --whole;
        copy_whole(to, stride, from, s.sw * s.c, run, whole);
        for (idx j = whole; j < in_end - in_first; ++j) copy_exact(to + j * stride, from + j * s.sw * s.c, run);
      }
      for (idx j = in_end; j < column + columns; ++j) at_border(j);
    }
  });
}

// to += from[i·step] over i < count, for n lanes; whole vectors of `from` are read.
template <class T>
FF_INLINE void add_lanes(T* to, const T* from, idx step, idx count, idx n) {
  vec<T> sum = load_n<T>(to, n);
  for (idx i = 0; i < count; ++i) sum = sum + load(from + i * step);
  store_n<T>(to, sum, n);
}

// The same for N channels as a type of their own: a masked store delays every load beside it, as of the next pixel.
template <class T, int N>
FF_INLINE void add_exact(T* to, const T* from, idx step, idx count) {
  typedef T V __attribute__((vector_size(N * sizeof(T))));
  V sum, v;
  __builtin_memcpy(&sum, to, sizeof sum);
  for (idx i = 0; i < count; ++i) {
    __builtin_memcpy(&v, from + i * step, sizeof v);
    sum = sum + v;
  }
  __builtin_memcpy(to, &sum, sizeof sum);
}

template <class T>
FF_INLINE void add_windows(T* to, const T* from, idx step, idx count, idx channels) {
  if constexpr (lanes<T> > 8) {
    if (channels == 8) return add_exact<T, 8>(to, from, step, count);
  }
  if constexpr (lanes<T> > 4) {
    if (channels == 4) return add_exact<T, 4>(to, from, step, count);
  }
  if constexpr (lanes<T> > 2) {
    if (channels == 2) return add_exact<T, 2>(to, from, step, count);
  }
  if (channels == 1) return add_exact<T, 1>(to, from, step, count);
  for_lanes<T>(channels, [&](idx c, idx n) { add_lanes<T>(to + c, from + c, step, count, n); });
}

// Adds src [count][stride], gradients of windows [first, first + count), to dx, but only to its rows [begin, end),
// which count over all images. A pixel takes what one row of the windows has for it at once, so that it is written kh
// times and not kh·kw times. stride leaves a vector's room after each.
template <class T>
FF_NOINLINE void scatter_windows(const Windows& s, const T* src, idx stride, idx first, idx count, T* dx, idx begin,
                                 idx end) {
  for_parts(s.ow, first, count, [&](idx row, idx column, idx columns, idx done) {
    const idx x_first = max_idx(0, column * s.sw - s.left), last = column + columns - 1;
    const idx x_end = min_idx(s.w, last * s.sw - s.left + s.kw);
    for (idx k = 0; k < s.kh; ++k) {
      const idx y = row % s.oh * s.sh + k - s.top, line = row / s.oh * s.h + y;
      if (y < 0 || y >= s.h || line < begin || line >= end) continue;
      const T* from = src + (done - column) * stride + k * s.run();
      T* to = dx + (line * s.w + x_first) * s.c;
      idx low = column, high = column;  // windows that hold column x of the image
      for (idx x = x_first; x < x_end; ++x, to += s.c) {
        const idx at = x + s.left;
        while (high < last && (high + 1) * s.sw <= at) ++high;
        while (low <= high && low * s.sw + s.kw <= at) ++low;
        add_windows<T>(to, from + low * stride + (at - low * s.sw) * s.c, stride - s.sw * s.c, high - low + 1, s.c);
      }
    }
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
