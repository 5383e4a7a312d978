// SPDX-License-Identifier: Apache-2.0
// AVX-512 F, BW, DQ, VL: 64-byte vectors, 32 registers, masked loads and stores.
#pragma once
#include <immintrin.h>

#define FF_VEC_BYTES 64

namespace ff {
namespace FF_ISA {
namespace {

constexpr int kRegisters = 32;
using f32v = __m512;
using f64v = __m512d;

FF_INLINE __mmask16 mask16(idx n) { return static_cast<__mmask16>((1u << n) - 1u); }
FF_INLINE __mmask8 mask8(idx n) { return static_cast<__mmask8>((1u << n) - 1u); }

FF_INLINE f32v set1(float value) { return _mm512_set1_ps(value); }
FF_INLINE f64v set1(double value) { return _mm512_set1_pd(value); }
FF_INLINE f32v load(const float* p) { return _mm512_loadu_ps(p); }
FF_INLINE f64v load(const double* p) { return _mm512_loadu_pd(p); }
FF_INLINE f32v load(const float* p, idx n) { return _mm512_maskz_loadu_ps(mask16(n), p); }
FF_INLINE f64v load(const double* p, idx n) { return _mm512_maskz_loadu_pd(mask8(n), p); }
FF_INLINE void store(float* p, f32v v) { _mm512_storeu_ps(p, v); }
FF_INLINE void store(double* p, f64v v) { _mm512_storeu_pd(p, v); }
FF_INLINE void store(float* p, f32v v, idx n) { _mm512_mask_storeu_ps(p, mask16(n), v); }
FF_INLINE void store(double* p, f64v v, idx n) { _mm512_mask_storeu_pd(p, mask8(n), v); }
FF_INLINE void stream(float* p, f32v v) { _mm512_stream_ps(p, v); }
FF_INLINE void stream(double* p, f64v v) { _mm512_stream_pd(p, v); }
FF_INLINE void stream_fence() { _mm_sfence(); }
FF_INLINE f32v fma(f32v a, f32v b, f32v c) { return _mm512_fmadd_ps(a, b, c); }
FF_INLINE f64v fma(f64v a, f64v b, f64v c) { return _mm512_fmadd_pd(a, b, c); }
// VMAXPS and VMINPS return the second operand when either is NaN.
FF_INLINE f32v max_bound(f32v v, f32v bound) { return _mm512_max_ps(bound, v); }
FF_INLINE f64v max_bound(f64v v, f64v bound) { return _mm512_max_pd(bound, v); }
FF_INLINE f32v min_bound(f32v v, f32v bound) { return _mm512_min_ps(bound, v); }
FF_INLINE f64v min_bound(f64v v, f64v bound) { return _mm512_min_pd(bound, v); }

FF_INLINE __m512i widen32(const uint8_t* p, idx n) { return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask16(n), p)); }
FF_INLINE __m512i widen64(const uint8_t* p, idx n) { return _mm512_cvtepu8_epi64(_mm_maskz_loadu_epi8(mask8(n), p)); }
// Narrowed in a register: the instruction that narrows into memory is slow on AMD.
FF_INLINE void narrow32(uint8_t* p, __m512i v, idx n) {
  const __m128i bytes = _mm512_cvtepi32_epi8(v);
  n == 16 ? _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes) : _mm_mask_storeu_epi8(p, mask16(n), bytes);
}
FF_INLINE void narrow64(uint8_t* p, __m512i v, idx n) {
  const __m128i bytes = _mm512_cvtepi64_epi8(v);
  n == 8 ? _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes) : _mm_mask_storeu_epi8(p, mask8(n), bytes);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
