// SPDX-License-Identifier: Apache-2.0
// Winograd's minimal filtering F(4×4, 3×3) (Lavin and Gray, 2016) for 3×3 convolutions of stride 1. A tile of 4×4 outputs
// comes from 6×6 inputs d and the filter g with 36 products a pair of channels in place of 144, as 36 products of
// matrices, one for each place of a transformed tile:
//   Y = Aᵀ[(G·g·Gᵀ) ⊙ (Bᵀ·d·B)]A
// and the gradients by its adjoints, both from W = A·dY·Aᵀ:
//   dd = B[(G·g·Gᵀ) ⊙ W]Bᵀ, added where tiles overlap,    dg = Gᵀ[(Bᵀ·d·B) ⊙ W]G, summed over the tiles.
// The transforms subtract nearly equal numbers: errors are two to three times those of the direct sum, relative to the
// largest values of a tile.
#pragma once
#include "conv2d/weights.h"
#include "simd/horizontal.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr idx kTileIn = 6, kTileOut = 4, kTilePlaces = kTileIn * kTileIn;

// The points of interpolation: 0, ±a, ±b and infinity. With 5/8 and 3/2, whose powers are exact, errors are half of those
// with 1 and 2, and the largest a quarter: no row of a transform is much larger than another (Barabasz et al., 2020, on the
// choice of points).
constexpr double kA = 5. / 8, kB = 3. / 2, kA2 = kA * kA, kB2 = kB * kB;
constexpr double kSum = kA2 + kB2, kProduct = kA2 * kB2, kNormA = 2 * kA2 * (kA2 - kB2), kNormB = 2 * kB2 * (kB2 - kA2);

// factor·x + y.
template <class T>
FF_INLINE vec<T> times(double factor, vec<T> x, vec<T> y) {
  return fma(splat<T>(static_cast<T>(factor)), x, y);
}
template <class T>
FF_INLINE vec<T> times(double factor, vec<T> x) {
  return splat<T>(static_cast<T>(factor)) * x;
}

// One dimension of the transforms.
struct InputTransform {  // Bᵀ
  static constexpr int in = 6, out = 6;
  template <class T>
  static FF_CLASS_INLINE void apply(const vec<T> (&d)[6], vec<T> (&v)[6]) {
    const vec<T> even = times<T>(-kB2, d[2], d[4]), odd = times<T>(kA, times<T>(-kB2, d[1], d[3]));
    const vec<T> even2 = times<T>(-kA2, d[2], d[4]), odd2 = times<T>(kB, times<T>(-kA2, d[1], d[3]));
    v[0] = times<T>(kProduct, d[0], times<T>(-kSum, d[2], d[4]));
    v[1] = even + odd, v[2] = even - odd;
    v[3] = even2 + odd2, v[4] = even2 - odd2;
    v[5] = times<T>(kProduct, d[1], times<T>(-kSum, d[3], d[5]));
  }
};

struct InputAdjoint {  // B
  static constexpr int in = 6, out = 6;
  template <class T>
  static FF_CLASS_INLINE void apply(const vec<T> (&v)[6], vec<T> (&d)[6]) {
    const vec<T> sum = v[1] + v[2], sum2 = v[3] + v[4];
    const vec<T> diff = times<T>(kA, v[1] - v[2]), diff2 = times<T>(kB, v[3] - v[4]);
    d[0] = times<T>(kProduct, v[0]);
    d[1] = times<T>(-kB2, diff, times<T>(-kA2, diff2, times<T>(kProduct, v[5])));
    d[2] = times<T>(-kSum, v[0], times<T>(-kB2, sum, times<T>(-kA2, sum2)));
    d[3] = times<T>(-kSum, v[5], diff + diff2);
    d[4] = v[0] + sum + sum2;
    d[5] = v[5];
  }
};

struct OutputTransform {  // Aᵀ
  static constexpr int in = 6, out = 4;
  template <class T>
  static FF_CLASS_INLINE void apply(const vec<T> (&m)[6], vec<T> (&y)[4]) {
    const vec<T> even = m[1] + m[2], even2 = m[3] + m[4];
    const vec<T> odd = times<T>(kA, m[1] - m[2]), odd2 = times<T>(kB, m[3] - m[4]);
    y[0] = m[0] + even + even2;
    y[1] = odd + odd2;
    y[2] = times<T>(kA2, even, times<T>(kB2, even2));
    y[3] = times<T>(kA2, odd, times<T>(kB2, odd2, m[5]));
  }
};

struct OutputAdjoint {  // A
  static constexpr int in = 4, out = 6;
  template <class T>
  static FF_CLASS_INLINE void apply(const vec<T> (&y)[4], vec<T> (&w)[6]) {
    const vec<T> even = times<T>(kA2, y[2], y[0]), odd = times<T>(kA, times<T>(kA2, y[3], y[1]));
    const vec<T> even2 = times<T>(kB2, y[2], y[0]), odd2 = times<T>(kB, times<T>(kB2, y[3], y[1]));
    w[0] = y[0];
    w[1] = even + odd, w[2] = even - odd;
    w[3] = even2 + odd2, w[4] = even2 - odd2;
    w[5] = y[3];
  }
};

struct FilterTransform {  // G
  static constexpr int in = 3, out = 6;
  template <class T>
  static FF_CLASS_INLINE void apply(const vec<T> (&g)[3], vec<T> (&u)[6]) {
    const vec<T> even = times<T>(1 / kNormA, times<T>(kA2, g[2], g[0])), odd = times<T>(kA / kNormA, g[1]);
    const vec<T> even2 = times<T>(1 / kNormB, times<T>(kB2, g[2], g[0])), odd2 = times<T>(kB / kNormB, g[1]);
    u[0] = times<T>(1 / kProduct, g[0]);
    u[1] = even + odd, u[2] = even - odd;
    u[3] = even2 + odd2, u[4] = even2 - odd2;
    u[5] = g[2];
  }
};

struct FilterAdjoint {  // Gᵀ
  static constexpr int in = 6, out = 3;
  template <class T>
  static FF_CLASS_INLINE void apply(const vec<T> (&u)[6], vec<T> (&g)[3]) {
    const vec<T> even = times<T>(1 / kNormA, u[1] + u[2]), even2 = times<T>(1 / kNormB, u[3] + u[4]);
    g[0] = times<T>(1 / kProduct, u[0], even + even2);
    g[1] = times<T>(kA / kNormA, u[1] - u[2], times<T>(kB / kNormB, u[3] - u[4]));
    g[2] = times<T>(kA2, even, times<T>(kB2, even2, u[5]));
  }
};

// M·t·Mᵀ of a tile of vectors, t[i][j] = from(i, j); result (i, j) goes to to(i, j, value).
template <class T, class M, class From, class To>
FF_INLINE void transform_tile(const From& from, const To& to) {
  vec<T> half[M::out][M::in];
  FF_UNROLL(6)
  for (int j = 0; j < M::in; ++j) {
    vec<T> column[M::in], t[M::out];
    FF_UNROLL(6)
    for (int i = 0; i < M::in; ++i) column[i] = from(i, j);
    M::template apply<T>(column, t);
    FF_UNROLL(6)
    for (int i = 0; i < M::out; ++i) half[i][j] = t[i];
  }
  FF_UNROLL(6)
  for (int i = 0; i < M::out; ++i) {
    vec<T> row[M::out];
    M::template apply<T>(half[i], row);
    FF_UNROLL(6)
    for (int j = 0; j < M::out; ++j) to(i, j, row[j]);
  }
}

// Tiles in rows over all images. The outputs of successive rows of tiles are successive pixels.
struct Tiles {
  idx across, down, rows;      // tiles in a row; rows of an image and of all images
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

// Whether the products saved outweigh the transforms: those of the weights do not depend on the pixels, and beyond the
// caches cost as much as 1/16 of their number of products for each of them.
template <class T>
FF_INLINE bool takes_winograd(const ConvShape& s) {
  constexpr idx kFewestChannels = 16, kFewestSaved = 512;
  if (sizeof(T) != sizeof(float) || s.kh != 3 || s.kw != 3 || s.sh != 1 || s.sw != 1) return false;
  if (s.c < kFewestChannels || s.o < kFewestChannels || s.top < 0 || s.left < 0 || s.top > 2 || s.left > 2) return false;
  const Tiles grid(s);
  const idx pixels = s.n * s.oh * s.ow, tiles = grid.rows * grid.across;
  const idx saved = 9 * pixels - kTilePlaces * tiles;  // products for each pair of channels
  return saved >= max_idx(kFewestSaved, s.c * s.o / 16) && 2 * tiles * kTileOut * kTileOut <= 5 * pixels;
}

// Elements from one place to the next of a buffer of `tiles` × `channels`: a line more than needed, so that places do not
// fall into the same cache sets.
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
    return kTilePlaces * (packed_size<T>(cols, depth) + panel_count(ceil_div(cols, lanes<T>)) * lanes<T>);
  }
  FF_CLASS_INLINE idx width(idx col) const { return panel_vectors(ceil_div(cols - col, lanes<T>)) * lanes<T>; }
  FF_CLASS_INLINE T* at(idx col, idx place) const {
    const idx step = depth * width(col) + lanes<T>;  // a line more than needed, as place_stride
    return u + kTilePlaces * (col * depth + col / 2) + place * step;
  }
  // Row k of every place; from(tap, col, j, n): lanes [0, n) of a filter tap at column j of the panel that begins at `col`.
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
    const T inf = T(__builtin_inf());
    gemm<T, false>({a, lda, at(col, place), 0, c, ldc, rows, width(col), depth, nullptr, -inf, inf, false});
  }
};

// v[place][tile][channels rounded up] = Bᵀ·d·B of the inputs of rows [first, end) of tiles, places `stride` apart.
template <class T>
FF_NOINLINE void transform_inputs(const ConvShape& s, const Tiles& tiles, const T* x, idx first, idx end, T* v, idx stride) {
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
        transform_tile<T, InputTransform>([&](int i, int j) {
          const bool inside = y0 + i >= 0 && y0 + i < s.h && x0 + j >= 0 && x0 + j < s.w;
          return inside ? load_n<T>(corner + (i * s.w + j) * s.c + c, n) : vec<T>{};
        }, keep);
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
