// SPDX-License-Identifier: Apache-2.0
// The vector facade that kernels are written on. One header per ISA defines FF_VEC_BYTES, the types f32v and f64v
// (GCC/Clang vector types: + - * /, comparisons and mask ? a : b work on them) and, for each of the two, with T its
// element type and V the vector:
//   V    set1(T value)                  the value in every lane (kernels write splat<T>(value))
//   V    load(const T* p)               all lanes, any alignment
//   V    load(const T* p, idx n)        lanes [0, n), zero in the others; p[n..] is not touched; 0 <= n <= lanes
//   void store(T* p, V v)               all lanes
//   void store(T* p, V v, idx n)        lanes [0, n) only
//   void stream(T* p, V v)              non-temporal, p aligned to the vector; followed by stream_fence() once
//   V    fma(V a, V b, V c)             a·b + c, in one rounding where the ISA has it
//   V    max_bound(V v, V bound)        lane maximum; a NaN in v stays, as torch's clamp does
//   V    min_bound(V v, V bound)
//   I    widen32(const uint8_t* p, idx n)       bytes [0, n) as the 32-bit lanes of f32v, zero in the others
//   void narrow32(uint8_t* p, I v, idx n)       the low bytes of those lanes; widen64 and narrow64 for f64v
// Everything here and in a cpu.cpp has internal linkage: a template merged by the linker between two ISAs would hand
// AVX-512 code to a baseline caller.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "core/check.h"
#include "core/inline.h"
#include "core/tasks.h"

#include FF_SIMD_HEADER

namespace ff {
namespace FF_ISA {
namespace {

typedef int32_t i32v __attribute__((vector_size(FF_VEC_BYTES)));
typedef int64_t i64v __attribute__((vector_size(FF_VEC_BYTES)));

template <class T>
struct Lane;
template <>
struct Lane<float> {
  using V = f32v;
  using I = i32v;
};
template <>
struct Lane<double> {
  using V = f64v;
  using I = i64v;
};

template <class T>
using vec = typename Lane<T>::V;

template <class T>
constexpr idx lanes = FF_VEC_BYTES / sizeof(T);

template <class T>
FF_INLINE vec<T> splat(T value) {
  return set1(value);
}

template <class T>
FF_INLINE idx round_up_lanes(idx n) {
  return ceil_div(n, lanes<T>) * lanes<T>;
}

// Runs body(c, n) for each vector of [0, count): n lanes are valid from element c on.
template <class T, class Body>
FF_INLINE void for_lanes(idx count, const Body& body) {
  idx c = 0;
  for (; c + lanes<T> <= count; c += lanes<T>) body(c, lanes<T>);
  if (c < count) body(c, count - c);
}

#if defined(__x86_64__)
#define FF_VECTOR_REGISTER "v"
#elif defined(__aarch64__)
#define FF_VECTOR_REGISTER "w"
#endif

// The same value, in a register from here on: GCC otherwise folds a load that several fma() use into each of them, and
// the load ports become the limit (depthwise 3×3: 72 loads instead of 30 for 72 fma, 68 instead of 105 GMAC/s).
template <class T>
FF_INLINE vec<T> in_register(vec<T> v) {
#ifdef FF_VECTOR_REGISTER
  __asm__("" : "+" FF_VECTOR_REGISTER(v));
#endif
  return v;
}

// The same pointer, hidden from the optimiser: stepping it costs one register, where a table of hoisted p + i·stride
// would cost one for each i.
template <class P>
FF_INLINE P stepped(P p) {
  __asm__("" : "+r"(p));
  return p;
}

template <class T>
FF_INLINE vec<T> load_n(const T* p, idx n) {
  return n == lanes<T> ? load(p) : load(p, n);
}
template <class T>
FF_INLINE void store_n(T* p, vec<T> v, idx n) {
  if (n == lanes<T>)
    store(p, v);
  else
    store(p, v, n);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
