// SPDX-License-Identifier: Apache-2.0
// The transforms of Winograd's minimal filtering F(4×4, 3×3) (Lavin and Gray, 2016). A tile of 4×4 outputs comes from
// 6×6 inputs d and the filter g with 36 products a pair of channels in place of 144, as 36 products of matrices, one
// for each place of a transformed tile:
//   Y = Aᵀ[(G·g·Gᵀ) ⊙ (Bᵀ·d·B)]A
// and the gradients by its adjoints, both from W = A·dY·Aᵀ:
//   dd = B[(G·g·Gᵀ) ⊙ W]Bᵀ, added where tiles overlap,    dg = Gᵀ[(Bᵀ·d·B) ⊙ W]G, summed over the tiles.
// The transforms subtract nearly equal numbers: errors are two to three times those of the direct sum, relative to the
// largest values of a tile.
#pragma once
#include "simd/vec.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr idx kTileIn = 6, kTileOut = 4, kTilePlaces = kTileIn * kTileIn;

// The points of interpolation: 0, ±a, ±b and infinity. With 5/8 and 3/2, whose powers are exact, errors are half of
// those with 1 and 2, and the largest a quarter: no row of a transform is much larger than another (Barabasz et al.,
// 2020, on the choice of points).
constexpr double kA = 5. / 8, kB = 3. / 2, kA2 = kA * kA, kB2 = kB * kB;
constexpr double kSum = kA2 + kB2, kProduct = kA2 * kB2, kNormA = 2 * kA2 * (kA2 - kB2), kNormB = 2 * kB2 * (kB2 - kA2);

// G as numbers, for filters that are transformed one by one and in float64.
constexpr double kFilterTransform[6][3] = {{1 / kProduct, 0, 0},
                                           {1 / kNormA, kA / kNormA, kA2 / kNormA},
                                           {1 / kNormA, -kA / kNormA, kA2 / kNormA},
                                           {1 / kNormB, kB / kNormB, kB2 / kNormB},
                                           {1 / kNormB, -kB / kNormB, kB2 / kNormB},
                                           {0, 0, 1}};

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

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
