// SPDX-License-Identifier: Apache-2.0
// NEON on aarch64: 16-byte vectors, 32 registers, fused multiply-add.
#pragma once
#include <arm_neon.h>

#define FF_VEC_BYTES 16

namespace ff {
namespace FF_ISA {
namespace {

constexpr int kRegisters = 32;
using f32v = float32x4_t;
using f64v = float64x2_t;

FF_INLINE f32v set1(float value) { return vdupq_n_f32(value); }
FF_INLINE f64v set1(double value) { return vdupq_n_f64(value); }
FF_INLINE f32v load(const float* p) { return vld1q_f32(p); }
FF_INLINE f64v load(const double* p) { return vld1q_f64(p); }
FF_INLINE f32v load(const float* p, idx n) {
  f32v v = vdupq_n_f32(0.f);
  __builtin_memcpy(&v, p, static_cast<size_t>(n) * sizeof *p);
  return v;
}
FF_INLINE f64v load(const double* p, idx n) {
  f64v v = vdupq_n_f64(0.);
  __builtin_memcpy(&v, p, static_cast<size_t>(n) * sizeof *p);
  return v;
}
FF_INLINE void store(float* p, f32v v) { vst1q_f32(p, v); }
FF_INLINE void store(double* p, f64v v) { vst1q_f64(p, v); }
FF_INLINE void store(float* p, f32v v, idx n) { __builtin_memcpy(p, &v, static_cast<size_t>(n) * sizeof *p); }
FF_INLINE void store(double* p, f64v v, idx n) { __builtin_memcpy(p, &v, static_cast<size_t>(n) * sizeof *p); }
FF_INLINE void stream(float* p, f32v v) { vst1q_f32(p, v); }
FF_INLINE void stream(double* p, f64v v) { vst1q_f64(p, v); }
FF_INLINE void stream_fence() {}
FF_INLINE f32v fma(f32v a, f32v b, f32v c) { return vfmaq_f32(c, a, b); }
FF_INLINE f64v fma(f64v a, f64v b, f64v c) { return vfmaq_f64(c, a, b); }
// FMAX and FMIN return NaN when either operand is one; bounds never are.
FF_INLINE f32v max_bound(f32v v, f32v bound) { return vmaxq_f32(v, bound); }
FF_INLINE f64v max_bound(f64v v, f64v bound) { return vmaxq_f64(v, bound); }
FF_INLINE f32v min_bound(f32v v, f32v bound) { return vminq_f32(v, bound); }
FF_INLINE f64v min_bound(f64v v, f64v bound) { return vminq_f64(v, bound); }

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
