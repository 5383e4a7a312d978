// SPDX-License-Identifier: Apache-2.0
// What 3×3 convolutions of stride 1 share that are computed by Winograd's algorithm (primitives/winograd.h): the tiles
// of a batch, the choice of the algorithm, the transformed weights and inputs.
#pragma once
#include "conv2d/weights.h"
#include "primitives/winograd.h"
#include "simd/lanes.h"

namespace ff {
namespace FF_ISA {
namespace {

// Tiles in rows over all images. The outputs of successive rows of tiles are successive pixels.
struct Tiles {
  idx across, down, rows;  // tiles in a row; rows of an image and of all images
  idx oh, ow;

  explicit Tiles(const ConvShape& s)
      : across(ceil_div(s.ow, kTileOut)), down(ceil_div(s.oh, kTileOut)), rows(s.n * down), oh(s.oh), ow(s.ow) {}
  FF_CLASS_INLINE idx first_pixel(idx row) const { return (row / down * oh + row % down * kTileOut) * ow; }
  // Calls body(row, column, at) for the tiles of rows [first, end), `at` counting from 0.
  template <class Body>
  FF_CLASS_INLINE void each(idx first, idx end, const Body& body) const {
    idx at = 0;
    for (idx row = first; row < end; ++row)
      for (idx column = 0; column < across; ++column) body(row, column, at++);
  }
};

// float64 takes the direct sum: it is there for exactness.
template <class T>
constexpr bool has_winograd = sizeof(T) == sizeof(float);

// Whether the products saved outweigh the transforms: those of the weights do not depend on the pixels, and beyond the
// caches cost as much as 1/16 of their number of products for each of them.
template <class T>
FF_INLINE bool takes_winograd(const ConvShape& s) {
  constexpr idx kFewestChannels = 16, kFewestSaved = 512;
  if (!has_winograd<T> || s.kh != 3 || s.kw != 3 || s.sh != 1 || s.sw != 1) return false;
  if (s.c < kFewestChannels || s.o < kFewestChannels || s.top < 0 || s.left < 0 || s.top > 2 || s.left > 2)
    return false;
  const Tiles grid(s);
  const idx pixels = s.n * s.oh * s.ow, tiles = grid.rows * grid.across;
  const idx saved = 9 * pixels - kTilePlaces * tiles;  // products for each pair of channels
  return saved >= max_idx(kFewestSaved, s.c * s.o / 16) && 2 * tiles * kTileOut * kTileOut <= 5 * pixels;
}

// Elements from one place to the next of a buffer of `tiles` × `channels`: a line more than needed, so that places do
// not fall into the same cache sets.
template <class T>
FF_INLINE idx place_stride(idx tiles, idx channels) {
  return tiles * round_up_lanes<T>(channels) + 64 / static_cast<idx>(sizeof(T));
}

// The transformed weights U = G·g·Gᵀ as packed columns for the product of each place, [panel][place][depth][width].
template <class T>
struct PlaceWeights {
  T* u;
  idx cols, depth;

  static idx size(idx cols, idx depth) {
    return kTilePlaces * (packed_size<T>(cols, depth) + panel_count<T>(ceil_div(cols, lanes<T>)) * lanes<T>);
  }
  FF_CLASS_INLINE idx width(idx col) const { return panel_vectors<T>(ceil_div(cols - col, lanes<T>)) * lanes<T>; }
  FF_CLASS_INLINE T* at(idx col, idx place) const {
    const idx step = depth * width(col) + lanes<T>;  // a line more than needed, as place_stride
    return u + kTilePlaces * (col * depth + col / 2) + place * step;
  }
  // Row k of every place; from(tap, col, j, n): lanes [0, n) of a filter tap at column j of the panel that begins at
  // `col`.
  template <class From>
  FF_CLASS_INLINE void fill(idx k, const From& from) const {
    for (idx col = 0; col < cols; col += width(col))
      for (idx j = 0; j < width(col); j += lanes<T>) {
        const idx n = min_idx(lanes<T>, cols - col - j);
        transform_tile<T, FilterTransform>(
            [&](int i, int l) { return from(i * 3 + l, col, j, n); },
            [&](int i, int l, vec<T> value) { store(at(col, i * kTileIn + l) + k * width(col) + j, value); });
      }
  }
  // c [rows][width] = a [rows][lda] × the weights of a place and panel; `ldc` may leave room for other panels.
  FF_CLASS_INLINE void multiply(idx col, idx place, const T* a, idx lda, idx rows, T* c, idx ldc) const {
    gemm<T, false>({.a = a,
                    .lda = lda,
                    .b = at(col, place),
                    .c = c,
                    .ldc = ldc,
                    .rows = rows,
                    .cols = width(col),
                    .depth = depth});
  }
};

// v[place][tile][channels rounded up] = Bᵀ·d·B of the inputs of rows [first, end) of tiles, places `stride` apart.
template <class T>
FF_NOINLINE void transform_inputs(const ConvShape& s, const Tiles& tiles, const T* x, idx first, idx end, T* v,
                                  idx stride) {
  const idx channels = round_up_lanes<T>(s.c);
  tiles.each(first, end, [&](idx row, idx column, idx at) {
    const idx y0 = row % tiles.down * kTileOut - s.top, x0 = column * kTileOut - s.left;
    const T* corner = x + ((row / tiles.down * s.h + y0) * s.w + x0) * s.c;
    const bool whole = y0 >= 0 && x0 >= 0 && y0 + kTileIn <= s.h && x0 + kTileIn <= s.w;
    for_lanes<T>(s.c, [&](idx c, idx n) {
      T* to = v + at * channels + c;
      const auto keep = [&](int i, int j, vec<T> value) { store(to + (i * kTileIn + j) * stride, value); };
      if (whole && n == lanes<T>)
        transform_tile<T, InputTransform>([&](int i, int j) { return load(corner + (i * s.w + j) * s.c + c); }, keep);
      else
        transform_tile<T, InputTransform>(
            [&](int i, int j) {
              const bool inside = y0 + i >= 0 && y0 + i < s.h && x0 + j >= 0 && x0 + j < s.w;
              return inside ? load_n<T>(corner + (i * s.w + j) * s.c + c, n) : vec<T>{};
            },
            keep);
    });
  });
}

// Whether all of `count` values are finite.
template <class T>
FF_INLINE bool all_finite(const T* p, idx count) {
  vec<T> sum = {};
  for_lanes<T>(count, [&](idx i, idx n) {
    const vec<T> v = load_n<T>(p + i, n);
    sum = sum + (v - v);
  });
  return sum_lanes<T>(sum) == T(0);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
