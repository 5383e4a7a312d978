// SPDX-License-Identifier: Apache-2.0
// Sums and maxima over the lanes of a vector, and what is built on them: inner products of rows.
#pragma once
#include "simd/vec.h"

namespace ff {
namespace FF_ISA {
namespace {

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

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
