// SPDX-License-Identifier: Apache-2.0
// What forward and backward share: a tile holds products of some keys with some queries, [keys][queries], vectorised
// over queries, so that a softmax runs down the columns and no lane needs another. Lanes beyond the queries are never
// read back.
#pragma once
#include "attention/op.h"
#include "simd/arena.h"
#include "primitives/local.h"
#include "simd/lanes.h"
#include "simd/math.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr idx kQueries = 96, kKeys = 256;  // of a tile: 96 KiB of float32, a third of a small L2
constexpr idx kGrain = 1 << 18;            // multiply-adds of a task; waking a thread takes about as long

// Row-major rows with room for a whole last vector.
template <class T>
struct Rows {
  const T* data;
  idx stride;
};

template <class T>
FF_INLINE idx room(idx rows, idx columns) {
  return columns % lanes<T> ? rows * round_up_lanes<T>(columns) : 0;
}

// `rows` themselves where their columns fill whole vectors, else a copy in `space`, room(count, columns) elements.
template <class T>
FF_INLINE Rows<T> with_room(const T* rows, idx count, idx columns, T* space) {
  const idx stride = round_up_lanes<T>(columns);
  if (stride == columns) return {rows, columns};
  for (idx r = 0; r < count; ++r) copy_padded(space + r * stride, rows + r * columns, columns);
  return {space, stride};
}

// c = a b, or c += a b; a transposed where TransA.
template <class T, bool TransA>
FF_INLINE void product(const T* a, idx lda, Rows<T> b, T* c, idx ldc, idx rows, idx columns, idx depth,
                       bool accumulate) {
  gemm<T, TransA>({.a = a,
                   .lda = lda,
                   .b = b.data,
                   .ldb = b.stride,
                   .c = c,
                   .ldc = ldc,
                   .rows = rows,
                   .cols = columns,
                   .depth = depth,
                   .accumulate = accumulate});
}

// Few queries leave most lanes empty: then each product is a sum over lanes, and nothing is packed.
template <class T>
FF_INLINE bool few(idx queries) {
  return 2 * queries <= lanes<T>;
}

template <class T>
FF_INLINE idx query_space(idx queries, idx depth) {
  return few<T>(queries) ? 0 : packed_size<T>(queries, depth);
}

template <class T>
FF_INLINE void pack_queries(T* packed, const T* rows, idx queries, idx depth) {
  if (few<T>(queries)) return;
  const idx panels = panel_count<T>(ceil_div(queries, lanes<T>));
  for (idx p = 0; p < panels; ++p) pack_transposed<T>(packed, rows, static_cast<const T*>(nullptr), queries, depth, p);
}

// tile[j][i] = key j · query i; `packed` by pack_queries from `rows`. Zeros in the lanes beyond.
template <class T>
FF_INLINE void key_products(T* tile, const T* key_rows, idx keys, const T* rows, const T* packed, idx queries,
                            idx depth) {
  constexpr idx L = lanes<T>;
  if (few<T>(queries)) {
    for (idx j = 0; j < keys; ++j) {
      T line[L] = {};
      for (idx i = 0; i < queries; ++i) line[i] = inner_product<T>(key_rows + j * depth, rows + i * depth, depth);
      store(tile + j * L, load(line));
    }
    return;
  }
  const idx stride = round_up_lanes<T>(queries);
  product<T, false>(key_rows, depth, {packed, 0}, tile, stride, keys, stride, depth, false);
}

template <class T>
FF_INLINE T score_rate(const DotProductParams& p) {
  const double scale = p.scale ? static_cast<double>(*static_cast<const T*>(p.scale)) : 1.0;
  return static_cast<T>(p.factor * scale);
}

// Scores of -inf alone: subtracting 0 instead of their maximum keeps every exp at 0.
template <class T>
FF_INLINE vec<T> finite_or_zero(vec<T> largest) {
  return largest == splat<T>(-T(__builtin_inf())) ? vec<T>{} : largest;
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
