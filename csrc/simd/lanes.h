// SPDX-License-Identifier: Apache-2.0
// The toolkit across the lanes of vectors: integers of a lane's width, lists of lanes for shuffles, folds of one vector
// or of as many as it has lanes, and transposes.
#pragma once
#include "simd/vec.h"

namespace ff {
namespace FF_ISA {
namespace {

// Integers of T's width.
template <class T>
using ivec = typename Lane<T>::I;

// The same integer in every lane.
template <class T>
FF_INLINE ivec<T> splat_index(idx value) {
  using Element = decltype(ivec<T>{}[0] + 0);
  return ivec<T>{} + static_cast<Element>(value);
}

// 0, 1, 2, ... as integers and as values.
template <class T>
FF_INLINE ivec<T> lane_numbers() {
  ivec<T> v = {};
  for (idx i = 0; i < lanes<T>; ++i) v[i] = static_cast<decltype(v[0] + 0)>(i);
  return v;
}
template <class T>
FF_INLINE vec<T> lane_values() {
  vec<T> v = {};
  for (idx i = 0; i < lanes<T>; ++i) v[i] = T(i);
  return v;
}

// AllLanes<T> carries the numbers of T's lanes as template arguments: shuffles take constants.
template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  using Type = Indices<I...>;
};
template <class T>
using AllLanes = typename MakeIndices<static_cast<int>(lanes<T>)>::Type;

// Folds the 16-byte parts of a vector, then the lanes of what is left, with op(a, b) on both; always in that order.
template <class T, class Op>
FF_INLINE T fold_lanes(vec<T> v, const Op& op) {
  typedef T part __attribute__((vector_size(16)));
  constexpr int kParts = FF_VEC_BYTES / 16, kLanes = 16 / static_cast<int>(sizeof(T));
  part parts[kParts];
  __builtin_memcpy(parts, &v, sizeof v);
  FF_UNROLL(4)
  for (int step = kParts / 2; step > 0; step /= 2) {
    FF_UNROLL(2)
    for (int i = 0; i < step; ++i) parts[i] = op(parts[i], parts[i + step]);
  }
  T result = parts[0][0];
  FF_UNROLL(4)
  for (int i = 1; i < kLanes; ++i) result = op(result, parts[0][i]);
  return result;
}

template <class T>
FF_INLINE T sum_lanes(vec<T> v) {
  return fold_lanes<T>(v, [](auto a, auto b) { return a + b; });
}

// A NaN may be dropped.
template <class T>
FF_INLINE T max_lanes(vec<T> v) {
  return fold_lanes<T>(v, [](auto a, auto b) { return a > b ? a : b; });
}

template <class T>
FF_INLINE T inner_product(const T* a, const T* b, idx count) {
  vec<T> sum = {};
  for_lanes<T>(count, [&](idx c, idx n) { sum = fma(load_n<T>(a + c, n), load_n<T>(b + c, n), sum); });
  return sum_lanes<T>(sum);
}

// Lanes l with bit S clear: a[l]; with it set: b[l - S].
template <class T, int S, int... I>
FF_INLINE vec<T> clear_half(vec<T> a, vec<T> b, Indices<I...>) {
  return __builtin_shufflevector(a, b, ((I & S) ? static_cast<int>(lanes<T>) + I - S : I)...);
}
// Lanes l with bit S clear: a[l + S]; with it set: b[l].
template <class T, int S, int... I>
FF_INLINE vec<T> set_half(vec<T> a, vec<T> b, Indices<I...>) {
  return __builtin_shufflevector(a, b, ((I & S) ? static_cast<int>(lanes<T>) + I : I + S)...);
}

// Exchanges bit S of the vector's number with bit S of the lane's, for each of `N` vectors.
template <class T, int S, int N>
FF_INLINE void transpose_bit(vec<T> (&v)[N]) {
  if constexpr (S < N) {
    FF_UNROLL(16)
    for (int i = 0; i < N; ++i) {
      if (i & S) continue;
      const vec<T> a = v[i], b = v[i + S];
      v[i] = clear_half<T, S>(a, b, AllLanes<T>{});
      v[i + S] = set_half<T, S>(a, b, AllLanes<T>{});
    }
    transpose_bit<T, 2 * S>(v);
  }
}

// v[i][l] <-> v[l][i].
template <class T>
FF_INLINE void transpose(vec<T> (&v)[lanes<T>]) {
  transpose_bit<T, 1>(v);
}

struct Add {
  template <class V>
  FF_CLASS_INLINE V operator()(V a, V b) const {
    return a + b;
  }
};
struct Larger {
  template <class V>
  FF_CLASS_INLINE V operator()(V a, V b) const {
    return max_bound(a, b);
  }
};
struct Smaller {
  template <class V>
  FF_CLASS_INLINE V operator()(V a, V b) const {
    return min_bound(a, b);
  }
};

// Lane i: op over the lanes of v[i]. With N < lanes of N lanes each: lane f·N + i is that of the f-th N lanes of v[i].
// A tree of two-vector shuffles: three instructions a result, where reducing each alone takes eight and more.
template <class T, int N = static_cast<int>(lanes<T>), int S = 1, class Op = Add>
FF_INLINE vec<T> reduce_lanes(const vec<T>* v, const Op& op = {}) {
  if constexpr (S == N) {
    return *v;
  } else {
    const vec<T> a = reduce_lanes<T, N, 2 * S>(v, op), b = reduce_lanes<T, N, 2 * S>(v + S, op);
    return op(clear_half<T, S>(a, b, AllLanes<T>{}), set_half<T, S>(a, b, AllLanes<T>{}));
  }
}

// The same of vectors in memory [lanes][lanes].
template <class T, class Op>
FF_INLINE vec<T> reduce_lanes_of(const T* from, const Op& op) {
  constexpr int L = static_cast<int>(lanes<T>);
  vec<T> v[L];
  FF_UNROLL(16)
  for (int i = 0; i < L; ++i) v[i] = load(from + i * L);
  return reduce_lanes<T>(v, op);
}

// The lanes of a, then of b, of even and of odd number.
template <class V, int... I>
FF_INLINE V even_lanes(V a, V b, Indices<I...>) {
  return __builtin_shufflevector(a, b, (2 * I)...);
}
template <class V, int... I>
FF_INLINE V odd_lanes(V a, V b, Indices<I...>) {
  return __builtin_shufflevector(a, b, (2 * I + 1)...);
}

// Lanes 2i and 2i + 1: a[i] and the i-th lane of its second half.
template <class V, int... I>
FF_INLINE V interleave_halves(V a, Indices<I...>) {
  return __builtin_shufflevector(a, a, ((I & 1) * static_cast<int>(sizeof...(I)) / 2 + I / 2)...);
}

// The first half of the lanes: a[2·R], the second: a[2·R + 1].
template <int R, class V, int... I>
FF_INLINE V spread_pair(V a, Indices<I...>) {
  return __builtin_shufflevector(a, a, (2 * R + (I >= static_cast<int>(sizeof...(I)) / 2))...);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
