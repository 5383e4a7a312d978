// SPDX-License-Identifier: Apache-2.0
// What maps hold, and the vectors of float32 that it becomes. bfloat16 and bytes need AVX-512 with BF16 and VNNI.
#pragma once
#include "engine/kernel_table.h"
#include "simd/math.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define FF_LOW_PRECISION 1
#else
#define FF_LOW_PRECISION 0
#endif

namespace ff {
namespace FF_ISA {
namespace {

using engine::Map;
using engine::Quant;
using engine::Type;

constexpr idx L = lanes<float>;
using vecf = vec<float>;

struct bf16 {
  uint16_t bits;
};

FF_INLINE vecf load_as(const float* p, const Quant&) { return load(p); }
FF_INLINE void store_as(float* p, vecf v, const Quant&) { store(p, v); }
// As stored: a byte's number, whatever it stands for.
FF_INLINE vecf load_raw(const float* p) { return load(p); }

#if FF_LOW_PRECISION
FF_INLINE vecf load_raw(const bf16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
FF_INLINE vecf load_raw(const uint8_t* p) { return _mm512_cvtepi32_ps(widen32(p, 16)); }
FF_INLINE vecf load_as(const bf16* p, const Quant&) { return load_raw(p); }
FF_INLINE vecf load_as(const uint8_t* p, const Quant& q) { return (load_raw(p) - splat(q.zero)) * splat(q.scale); }
FF_INLINE void store_as(bf16* p, vecf v, const Quant&) {
  const __m256bh half = _mm512_cvtneps_pbh(v);
  __builtin_memcpy(p, &half, sizeof half);
}
// To the nearest, ties to even; out of range to 0 or 255, and NaN to 0.
FF_INLINE void store_as(uint8_t* p, vecf v, const Quant& q) {
  const __m512i whole = _mm512_cvtps_epi32(fma(v, splat(q.inverse), splat(q.zero)));
  const __m512i bounded = _mm512_max_epi32(whole, _mm512_setzero_si512());
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(bounded));
}
#endif

FF_INLINE idx size_of(Type type) { return type == Type::float32 ? 4 : type == Type::bfloat16 ? 2 : 1; }

template <class T>
struct TypeTag {
  using type = T;
};

// Calls body(TypeTag<T>{}) for what `type` says; where nothing else is compiled, for floats.
template <class Body>
FF_INLINE void with_type(Type type, const Body& body) {
#if FF_LOW_PRECISION
  if (type == Type::bfloat16) return body(TypeTag<bf16>{});
  if (type == Type::uint8) return body(TypeTag<uint8_t>{});
#endif
  FF_ASSERT(type == Type::float32);
  (void)type;
  body(TypeTag<float>{});
}

// The place of pixel 0 of row y of block b.
FF_INLINE void* place(const Map& m, Type type, idx b, idx y) {
  return reinterpret_cast<char*>(m.data) + (b * m.block + y * m.row) * size_of(type);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
