// SPDX-License-Identifier: Apache-2.0
// Turning vectors of channels into vectors of pixels: transposes, and sums over the lanes of many vectors at once. Both
// exchange one bit of the vector's number with one bit of the lane's number at a time.
#pragma once
#include "pool/best.h"

namespace ff {
namespace FF_ISA {
namespace {

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

// Lane i: the sum of the lanes of v[i]. With N < lanes of N lanes each: lane f·N + i is that of the f-th N lanes of v[i].
template <class T, int N = static_cast<int>(lanes<T>), int S = 1>
FF_INLINE vec<T> lane_sums(const vec<T>* v) {
  if constexpr (S == N) {
    return *v;
  } else {
    const vec<T> a = lane_sums<T, N, 2 * S>(v), b = lane_sums<T, N, 2 * S>(v + S);
    return clear_half<T, S>(a, b, AllLanes<T>{}) + set_half<T, S>(a, b, AllLanes<T>{});
  }
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

template <class T>
FF_INLINE ivec<T> lane_numbers() {
  ivec<T> v = {};
  for (idx i = 0; i < lanes<T>; ++i) v[i] = static_cast<decltype(v[0] + 0)>(i);
  return v;
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
