// SPDX-License-Identifier: Apache-2.0
// Any CPU: 16-byte vectors in the compiler's own vector types (SSE2 on x86-64), no fused multiply-add.
#pragma once

#define FF_VEC_BYTES 16

namespace ff {
namespace FF_ISA {
namespace {

constexpr int kRegisters = 16;
typedef float f32v __attribute__((vector_size(16)));
typedef double f64v __attribute__((vector_size(16)));

#define FF_BASELINE_OPS(T, V)                                                                             \
  FF_INLINE V load(const T* p) {                                                                          \
    V v;                                                                                                  \
    __builtin_memcpy(&v, p, sizeof v);                                                                    \
    return v;                                                                                             \
  }                                                                                                       \
  FF_INLINE V load(const T* p, idx n) {                                                                   \
    V v = {};                                                                                             \
    __builtin_memcpy(&v, p, static_cast<size_t>(n) * sizeof(T));                                          \
    return v;                                                                                             \
  }                                                                                                       \
  FF_INLINE void store(T* p, V v) { __builtin_memcpy(p, &v, sizeof v); }                                  \
  FF_INLINE void store(T* p, V v, idx n) { __builtin_memcpy(p, &v, static_cast<size_t>(n) * sizeof(T)); } \
  FF_INLINE void stream(T* p, V v) { store(p, v); }                                                       \
  FF_INLINE V fma(V a, V b, V c) { return a * b + c; }                                                    \
  FF_INLINE V max_bound(V v, V bound) { return v < bound ? bound : v; }                                   \
  FF_INLINE V min_bound(V v, V bound) { return v > bound ? bound : v; }

FF_INLINE f32v set1(float value) { return f32v{value, value, value, value}; }
FF_INLINE f64v set1(double value) { return f64v{value, value}; }
FF_BASELINE_OPS(float, f32v)
FF_BASELINE_OPS(double, f64v)
#undef FF_BASELINE_OPS

FF_INLINE void stream_fence() {}

#define FF_BYTES(bits)                                                     \
  typedef int##bits##_t i##bits##x __attribute__((vector_size(16)));       \
  typedef uint8_t u8x##bits __attribute__((vector_size(16 / (bits / 8)))); \
  FF_INLINE i##bits##x widen##bits(const uint8_t* p, idx n) {              \
    u8x##bits bytes = {};                                                  \
    __builtin_memcpy(&bytes, p, static_cast<size_t>(n));                   \
    return __builtin_convertvector(bytes, i##bits##x);                     \
  }                                                                        \
  FF_INLINE void narrow##bits(uint8_t* p, i##bits##x v, idx n) {           \
    const u8x##bits bytes = __builtin_convertvector(v, u8x##bits);         \
    __builtin_memcpy(p, &bytes, static_cast<size_t>(n));                   \
  }
FF_BYTES(32)
FF_BYTES(64)
#undef FF_BYTES

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
