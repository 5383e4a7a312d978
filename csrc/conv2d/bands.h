// SPDX-License-Identifier: Apache-2.0
// Convolution straight from a band of image rows that lies in L1 between zeros: a window is then kh runs of memory, one
// in each row, and no windows are gathered. Where outputs are few, gathering costs more than the product.
#pragma once
#include "conv2d/weights.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr idx kBandOutputs = 32;  // with more of them the gathered windows are used often enough
constexpr idx kBandColumns = 24;  // with fewer of them the tiles of a row are small
constexpr idx kRowBandBytes = 32 << 10;

FF_INLINE bool is_banded(const ConvShape& s) { return s.kh * s.kw > 1 && s.o <= kBandOutputs && s.ow >= kBandColumns; }

// Rows of an image [h][w][c] with the padding that windows see: `line` elements from row to row.
struct Band {
  idx h, w, c, width, line;
  int top, left;

  explicit Band(const ConvShape& s)
      : h(s.h), w(s.w), c(s.c), width((s.ow - 1) * s.sw + s.kw), line(width * s.c), top(s.top), left(s.left) {}
  // Elements of so many rows, and room for a whole vector after them.
  template <class T>
  FF_CLASS_INLINE idx size(idx rows) const {
    return rows * line + 2 * lanes<T>;
  }
};

// Output rows whose input rows fit in a band, so that an image is cut evenly.
template <class T>
FF_INLINE idx band_rows(const ConvShape& s) {
  const idx bytes = max_idx(1, Band(s).line) * static_cast<idx>(sizeof(T));
  const idx most = max_idx(1, (kRowBandBytes / bytes - s.kh) / s.sh + 1);
  return max_idx(1, ceil_div(s.oh, max_idx(1, ceil_div(s.oh, most))));
}

// Calls body(row, from) for `rows` rows of a band that starts at image row `first`, from < 0 where there is only
// padding, and makes the columns beside the image zero.
template <class T, class Body>
FF_INLINE void fill_band(const Band& b, idx first, idx rows, T* band, const Body& body) {
  const idx before = max_idx(0, b.left), skipped = max_idx(0, -b.left),
            count = min_idx(b.width - before, b.w - skipped);
  for (idx r = 0; r < rows; ++r, ++first, band += b.line) {
    if (first < 0 || first >= b.h || count <= 0) {
      fill_zero(band, b.line);
      continue;
    }
    fill_zero(band, before * b.c);
    body(band + before * b.c, first, skipped, count);
    fill_zero(band + (before + count) * b.c, (b.width - before - count) * b.c);
  }
}

// A band from image row `first` on.
template <class T>
FF_NOINLINE void copy_band(const Band& b, const T* image, idx first, idx rows, T* band) {
  fill_band<T>(b, first, rows, band, [&](T* to, idx row, idx column, idx count) {
    copy_exact(to, image + (row * b.w + column) * b.c, count * b.c);
  });
}

// c[i] = clamp(sum over kernel rows k and their runs of a[k·line + i·step + ·]·b + bias) for the windows of one output
// row.
template <class T>
struct BandProduct {
  idx kh, run, line, step;  // `step` from window to window
  const T* b;  // packed, see pack_windows
  const T* bias;
  T lo, hi;
  idx cols;
};

template <class T, int MR, int NR>
FF_NOINLINE void band_tile(const BandProduct<T>& p, const T* a, const T* b, idx col, T* c) {
  constexpr idx L = lanes<T>;
  vec<T> acc[MR][NR];
  FF_UNROLL(16)
  for (int i = 0; i < MR; ++i) {
    FF_UNROLL(4)
    for (int j = 0; j < NR; ++j) acc[i][j] = vec<T>{};
  }
  for (idx k = 0; k < p.kh; ++k, a += p.line) {
    for (idx l = 0; l < p.run; ++l, b += NR * L) {
      vec<T> b_v[NR];
      FF_UNROLL(4)
      for (int j = 0; j < NR; ++j) b_v[j] = load(b + j * L);
      FF_UNROLL(16)
      for (int i = 0; i < MR; ++i) {
        const vec<T> a_v = splat<T>(a[l + i * p.step]);
        FF_UNROLL(4)
        for (int j = 0; j < NR; ++j) acc[i][j] = fma(a_v, b_v[j], acc[i][j]);
      }
    }
  }
  const vec<T> lo_v = splat<T>(p.lo), hi_v = splat<T>(p.hi);
  FF_UNROLL(4)
  for (int j = 0; j < NR; ++j) {
    const idx at = col + j * L, n = max_idx(0, min_idx(L, p.cols - at));
    const vec<T> bias_v = p.bias ? load(p.bias + at) : vec<T>{};
    FF_UNROLL(16)
    for (int i = 0; i < MR; ++i)
      store_n<T>(c + i * p.cols + at, min_bound(max_bound(acc[i][j] + bias_v, lo_v), hi_v), n);
  }
}

// 12 windows: 24 in two tiles, where 14 would leave 2 over, whose sums wait for each other.
constexpr int band_tile_rows(int vectors) {
  return kRegisters == 32 ? (vectors == 3 ? 8 : 12) : (vectors == 1 ? 8 : 6);
}

template <class T, int MR, int NR>
FF_INLINE void band_tiles(const BandProduct<T>& p, const T* a, const T* b, idx col, idx windows, T* c) {
  for (; windows >= MR; windows -= MR, a += MR * p.step, c += MR * p.cols) band_tile<T, MR, NR>(p, a, b, col, c);
  if constexpr (MR > 1) {
    if (windows > 0) band_tiles<T, (MR > 8 ? 8 : MR > 4 ? 4 : MR > 2 ? 2 : 1), NR>(p, a, b, col, windows, c);
  }
}

// Output rows [0, rows) of `windows` windows each, from a band that starts where the first of them looks.
template <class T>
FF_INLINE void multiply_band(const BandProduct<T>& p, const T* band, idx row_step, idx rows, idx windows, T* out) {
  constexpr idx L = lanes<T>;
  for (idx col = 0; col < p.cols;) {
    const int vectors = panel_vectors<T>(ceil_div(p.cols - col, L));
    const T* b = p.b + col * p.kh * p.run;
    for (idx r = 0; r < rows; ++r) {
      const T* a = band + r * row_step;
      T* c = out + r * windows * p.cols;
      if (vectors == 2) band_tiles<T, band_tile_rows(2), 2>(p, a, b, col, windows, c);
      if (vectors == 1) band_tiles<T, band_tile_rows(1), 1>(p, a, b, col, windows, c);
      if constexpr (kRegisters == 32) {
        if (vectors == 3) band_tiles<T, band_tile_rows(3), 3>(p, a, b, col, windows, c);
      }
    }
    col += vectors * L;
  }
}

template <class T>
FF_INLINE bool any_nan(const T* p, idx n) {
  vec<T> sum = {};
  for_lanes<T>(n, [&](idx i, idx valid) {
    const vec<T> v = load_n<T>(p + i, valid);
    sum = sum + (v == v ? vec<T>{} : v);
  });
  T lane[lanes<T>];
  store(lane, sum);
  bool found = false;
  for (idx i = 0; i < lanes<T>; ++i) found |= lane[i] != lane[i];
  return found;
}

// Output rows from a band with all windows' rows, windows of w.group neighbours as one.
template <class T>
FF_INLINE void convolve_band(const ConvShape& s, const ForwardWeights<T>& w, T lo, T hi, const T* band, idx rows,
                             T* out) {
  const idx line = Band(s).line;
  const auto product = [&](idx group, const T* packed) {
    const Windows windows(s, group);
    multiply_band<T>({s.kh, windows.run(), line, windows.sw * s.c, packed, w.bias, lo, hi, group * s.o}, band,
                     s.sh * line, rows, windows.ow, out);
  };
  product(w.group, w.group > 1 ? w.grouped : w.single);
  // A zero times what a neighbour alone sees is NaN where that is not finite.
  if (w.group > 1 && any_nan<T>(out, rows * s.ow * s.o)) product(1, w.single);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
