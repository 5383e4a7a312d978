// SPDX-License-Identifier: Apache-2.0
// AVX2 and FMA: 32-byte vectors, 16 registers.
#pragma once
#include <immintrin.h>

#define FF_VEC_BYTES 32

namespace ff {
namespace FF_ISA {
namespace {

constexpr int kRegisters = 16;
using f32v = __m256;
using f64v = __m256d;

// Lane i of the mask is set when i < n: a window into 8 ones followed by 8 zeros.
FF_INLINE __m256i mask32(idx n) {
  alignas(64) static const int32_t window[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(window + 8 - n));
}
FF_INLINE __m256i mask64(idx n) { return mask32(2 * n); }

FF_INLINE f32v set1(float value) { return _mm256_set1_ps(value); }
FF_INLINE f64v set1(double value) { return _mm256_set1_pd(value); }
FF_INLINE f32v load(const float* p) { return _mm256_loadu_ps(p); }
FF_INLINE f64v load(const double* p) { return _mm256_loadu_pd(p); }
FF_INLINE f32v load(const float* p, idx n) { return _mm256_maskload_ps(p, mask32(n)); }
FF_INLINE f64v load(const double* p, idx n) { return _mm256_maskload_pd(p, mask64(n)); }
FF_INLINE void store(float* p, f32v v) { _mm256_storeu_ps(p, v); }
FF_INLINE void store(double* p, f64v v) { _mm256_storeu_pd(p, v); }
FF_INLINE void store(float* p, f32v v, idx n) { _mm256_maskstore_ps(p, mask32(n), v); }
FF_INLINE void store(double* p, f64v v, idx n) { _mm256_maskstore_pd(p, mask64(n), v); }
FF_INLINE void stream(float* p, f32v v) { _mm256_stream_ps(p, v); }
FF_INLINE void stream(double* p, f64v v) { _mm256_stream_pd(p, v); }
FF_INLINE void stream_fence() { _mm_sfence(); }
FF_INLINE f32v fma(f32v a, f32v b, f32v c) { return _mm256_fmadd_ps(a, b, c); }
FF_INLINE f64v fma(f64v a, f64v b, f64v c) { return _mm256_fmadd_pd(a, b, c); }
// MAXPS and MINPS return the second operand when either is NaN.
FF_INLINE f32v max_bound(f32v v, f32v bound) { return _mm256_max_ps(bound, v); }
FF_INLINE f64v max_bound(f64v v, f64v bound) { return _mm256_max_pd(bound, v); }
FF_INLINE f32v min_bound(f32v v, f32v bound) { return _mm256_min_ps(bound, v); }
FF_INLINE f64v min_bound(f64v v, f64v bound) { return _mm256_min_pd(bound, v); }

FF_INLINE __m128i load_bytes(const uint8_t* p, idx n) {
  int64_t bits = 0;
  __builtin_memcpy(&bits, p, static_cast<size_t>(n));
  return _mm_cvtsi64_si128(bits);
}
FF_INLINE void store_bytes(uint8_t* p, __m128i v, idx n) {
  const int64_t bits = _mm_cvtsi128_si64(v);
  __builtin_memcpy(p, &bits, static_cast<size_t>(n));
}
FF_INLINE __m256i widen32(const uint8_t* p, idx n) {
  return _mm256_cvtepu8_epi32(n == 8 ? load_bytes(p, 8) : load_bytes(p, n));
}
FF_INLINE __m256i widen64(const uint8_t* p, idx n) {
  return _mm256_cvtepu8_epi64(n == 4 ? load_bytes(p, 4) : load_bytes(p, n));
}
FF_INLINE void narrow32(uint8_t* p, __m256i v, idx n) {
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i bytes = _mm_packus_epi16(words, words);
  n == 8 ? store_bytes(p, bytes, 8) : store_bytes(p, bytes, n);
}
FF_INLINE void narrow64(uint8_t* p, __m256i v, idx n) {
  const __m128i low = _mm256_castsi256_si128(v), high = _mm256_extracti128_si256(v, 1);
  const __m128i words = _mm_packus_epi32(low, high);  // 16-bit lanes 0, -, 1, -, 2, -, 3, -
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m128i bytes = _mm_shuffle_epi8(words, order);
  n == 4 ? store_bytes(p, bytes, 4) : store_bytes(p, bytes, n);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
