// SPDX-License-Identifier: Apache-2.0
// The largest value so far in each lane, and where it was.
#pragma once
#include "simd/lanes.h"

namespace ff {
namespace FF_ISA {
namespace {

template <class T>
struct Best {
  vec<T> value;
  ivec<T> position;

  // The first of equal values stays; a NaN is taken always.
  FF_CLASS_INLINE void take(vec<T> v, ivec<T> at) {
    const vec<T> kept = v == v ? value : v;
    const ivec<T> kept_at = v == v ? position : at;
    position = v > value ? at : kept_at;
    value = v > value ? v : kept;
  }
  // The same, but the first NaN stays.
  FF_CLASS_INLINE void take_once(vec<T> v, ivec<T> at) {
    const vec<T> larger = v <= value ? value : v;
    const ivec<T> larger_at = v <= value ? position : at;
    position = value == value ? larger_at : position;
    value = value == value ? larger : value;
  }
  // The value alone.
  FF_CLASS_INLINE void take(vec<T> v) { value = v > value ? v : (v == v ? value : v); }
};

template <class P, int Bytes>
struct Packed {
  typedef P V __attribute__((vector_size(Bytes)));
};
// Positions of T's lanes in memory: uint8 or int32.
template <class T, class P>
using positions_of = typename Packed<P, static_cast<int>(lanes<T> * sizeof(P))>::V;

template <class T, class P>
FF_INLINE void store_positions(P* p, ivec<T> v, idx n) {
  if constexpr (sizeof(P) == 1) {
    if constexpr (sizeof(T) == 4)
      narrow32(p, (decltype(widen32(p, n)))v, n);
    else
      narrow64(p, (decltype(widen64(p, n)))v, n);
    return;
  }
  const positions_of<T, P> narrow = __builtin_convertvector(v, positions_of<T, P>);
  if (n == lanes<T>)
    __builtin_memcpy(p, &narrow, sizeof narrow);
  else
    __builtin_memcpy(p, &narrow, static_cast<size_t>(n) * sizeof(P));
}

template <class T, class P>
FF_INLINE ivec<T> load_positions(const P* p, idx n) {
  if constexpr (sizeof(P) == 1) {
    if constexpr (sizeof(T) == 4)
      return (ivec<T>)widen32(p, n);
    else
      return (ivec<T>)widen64(p, n);
  }
  positions_of<T, P> narrow = {};
  if (n == lanes<T>)
    __builtin_memcpy(&narrow, p, sizeof narrow);
  else
    __builtin_memcpy(&narrow, p, static_cast<size_t>(n) * sizeof(P));
  return __builtin_convertvector(narrow, ivec<T>);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
