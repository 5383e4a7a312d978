// SPDX-License-Identifier: Apache-2.0
// What maps hold beside float32, and vectors of float32 from it and to it.
#pragma once
#include "engine/kernels/finish.h"

// The ISA whose kernels of float32 this one runs.
#define FF_FLOATS_OF(isa) FF_OPS_##isa
#define FF_FLOATS_NAMED(isa) FF_FLOATS_OF(isa)
#define FF_FLOATS FF_FLOATS_NAMED(FF_ISA)

namespace ff {
namespace FF_ISA {
namespace {

using engine::Quant;
using engine::Type;

struct bf16 {
  uint16_t bits;
};

FF_INLINE vecf load_as(const float* p, const Quant&) { return load(p); }
FF_INLINE void store_as(float* p, vecf v, const Quant&) { store(p, v); }

typedef uint16_t halves __attribute__((vector_size(FF_VEC_BYTES / 2)));
#if FF_VEC_BYTES == 64
// One shuffle to the upper halves of lanes, where widening and shifting are two.
FF_INLINE vecf load_as(const bf16* p, const Quant&) {
  const __m512i order = _mm512_slli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 16);
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (vecf)_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, order, _mm512_castsi256_si512(half));
}
#else
FF_INLINE vecf load_as(const bf16* p, const Quant&) {
  halves h;
  __builtin_memcpy(&h, p, sizeof h);
  return (vecf)(__builtin_convertvector(h, i32v) << 16);
}
#endif
FF_INLINE vecf load_as(const uint8_t* p, const Quant& q) {
  return (__builtin_convertvector((i32v)widen32(p, L), vecf) - splat(q.zero)) * splat(q.scale);
}

// To the nearest, ties to even; NaN stays.
#if defined(__AVX512BF16__)
FF_INLINE void store_as(bf16* p, vecf v, const Quant&) {
  const __m256bh half = _mm512_cvtneps_pbh(v);
  __builtin_memcpy(p, &half, sizeof half);
}
#else
FF_INLINE void store_as(bf16* p, vecf v, const Quant&) {
  typedef uint32_t u32v __attribute__((vector_size(FF_VEC_BYTES)));
  const u32v bits = (u32v)v, odd = (bits >> 16) & 1;
  const i32v rounded = (i32v)((bits + 0x7fff + odd) >> 16), kept = (i32v)(bits >> 16 | 0x40);
  const i32v half = v == v ? rounded : kept;
#if FF_VEC_BYTES == 64
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)half));
#else
  const halves narrow = __builtin_convertvector(half, halves);
  __builtin_memcpy(p, &narrow, sizeof narrow);
#endif
}
#endif

// To the nearest, ties to even; out of range to 0 or 255, and NaN to 0. Bounded before it is converted, where a number
// that no integer holds would be undefined; 2^23 + a number has that number as its low bits.
FF_INLINE void store_as(uint8_t* p, vecf v, const Quant& q) {
  const vecf scaled = fma(v, splat(q.inverse), splat(q.zero));
#if defined(__AVX512F__)
  const __m512i bounded = _mm512_max_epi32(_mm512_cvtps_epi32(scaled), _mm512_setzero_si512());
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(bounded));
#else
  const vecf positive = scaled > vecf{} ? scaled : vecf{}, bounded = min_bound(positive, splat(255.f));
  const i32v whole = (i32v)(bounded + splat(8388608.f)) & 255;
  narrow32(p, (decltype(widen32(p, L)))whole, L);
#endif
}

FF_INLINE idx size_of(Type type) { return type == Type::float32 ? 4 : type == Type::bfloat16 ? 2 : 1; }

template <class T>
struct TypeTag {
  using type = T;
};

// Calls body(TypeTag<T>{}) for what `type` says.
template <class Body>
FF_INLINE void with_type(Type type, const Body& body) {
  if (type == Type::bfloat16) return body(TypeTag<bf16>{});
  if (type == Type::uint8) return body(TypeTag<uint8_t>{});
  body(TypeTag<float>{});
}

// The place of pixel 0 of row y of block b.
FF_INLINE char* place(const Map& m, Type type, idx b, idx y) {
  return reinterpret_cast<char*>(m.data) + (b * m.block + y * m.row) * size_of(type);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
