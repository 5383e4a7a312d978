// SPDX-License-Identifier: Apache-2.0
// How words of bfloat16 and of bytes are multiplied by weights. Each way has kVectors vectors of weights for a word,
// which `operand` makes a factor of its own for; `put` writes a lane of them, `apart` bytes apart. No way can saturate:
// where there is no dot product of bytes, these are widened to pairs of 16 bits, whose products are summed in 32
// (PMADDWD), as 255·127·2 does not fit 16.
#pragma once
#include "engine/kernels/low_words.h"
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace ff {
namespace FF_ISA {
namespace {

FF_INLINE int32_t word_at(const char* p) {
  int32_t word = 0;
  __builtin_memcpy(&word, p, sizeof word);
  return word;
}
FF_INLINE i32v every_word(const char* p) { return i32v{} + word_at(p); }
FF_INLINE i32v load_words(const float* p) { return (i32v)load(p); }

#if defined(__AVX512BF16__)
struct Bf16Products : Bf16Words {  // two products into a float32 lane
  using Sum = vecf;
  static constexpr const char* kWay = "vdpbf16ps";
  static constexpr int kVectors = 1, kLatency = 14;
  static FF_CLASS_INLINE i32v operand(const char* x, int) { return every_word(x); }
  static FF_CLASS_INLINE i32v weights(const float* w) { return load_words(w); }
  static FF_CLASS_INLINE Sum add(Sum sum, i32v x, i32v w) { return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w); }
};
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
struct Bf16Products : Bf16Words {  // two products into a float32 lane
  using Sum = vecf;
  static constexpr const char* kWay = "bfdot";
  static constexpr int kVectors = 1, kLatency = 8;
  static FF_CLASS_INLINE i32v operand(const char* x, int) { return every_word(x); }
  static FF_CLASS_INLINE i32v weights(const float* w) { return load_words(w); }
  static FF_CLASS_INLINE Sum add(Sum sum, i32v x, i32v w) {
    return (Sum)vbfdotq_f32((float32x4_t)sum, vreinterpretq_bf16_s32((int32x4_t)x),
                            vreinterpretq_bf16_s32((int32x4_t)w));
  }
};
#else
struct Bf16Products {  // both channels as float32: a bfloat16 is its upper half
  using Sum = vecf;
  static constexpr const char* kWay = "float32";
  static constexpr int kVectors = 2, kLatency = 8;
  static FF_CLASS_INLINE vecf operand(const char* x, int which) {
    const i32v word = every_word(x);
    return (vecf)(which ? word & static_cast<int32_t>(0xffff0000u) : word << 16);
  }
  static FF_CLASS_INLINE vecf weights(const float* w) { return load(w); }
  static FF_CLASS_INLINE Sum add(Sum sum, vecf x, vecf w) { return fma(x, w, sum); }
  static FF_CLASS_INLINE void put(char* to, idx apart, idx lane, const float (&w)[2]) {
    for (idx i = 0; i < 2; ++i) {
      const uint32_t bits = static_cast<uint32_t>(bf16_of(w[i])) << 16;
      __builtin_memcpy(to + i * apart + lane * 4, &bits, sizeof bits);
    }
  }
};
#endif

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD)
struct ByteProducts : ByteWords {  // four products into an int32 lane
  using Sum = i32v;
  static constexpr int kVectors = 1, kLatency = 8;
  static FF_CLASS_INLINE i32v weights(const float* w) { return load_words(w); }
#if defined(__ARM_FEATURE_MATMUL_INT8)  // of bytes without a sign by bytes with one
  static constexpr const char* kWay = "usdot";
  static constexpr int kOffset = 0;
  static FF_CLASS_INLINE i32v operand(const char* x, int) { return every_word(x); }
  static FF_CLASS_INLINE Sum add(Sum sum, i32v x, i32v w) {
    return (Sum)vusdotq_s32((int32x4_t)sum, (uint8x16_t)x, (int8x16_t)w);
  }
#elif defined(__ARM_FEATURE_DOTPROD)  // of signed bytes
  static constexpr const char* kWay = "sdot";
  static constexpr int kOffset = -128;
  static FF_CLASS_INLINE i32v operand(const char* x, int) { return every_word(x) ^ static_cast<int32_t>(0x80808080u); }
  static FF_CLASS_INLINE Sum add(Sum sum, i32v x, i32v w) {
    return (Sum)vdotq_s32((int32x4_t)sum, (int8x16_t)x, (int8x16_t)w);
  }
#else
  static constexpr const char* kWay = "vpdpbusd";
  static constexpr int kOffset = 0;
  static FF_CLASS_INLINE i32v operand(const char* x, int) { return every_word(x); }
#if defined(__AVX512VNNI__)
  static FF_CLASS_INLINE Sum add(Sum sum, i32v x, i32v w) {
    return (Sum)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
  }
#else
  static FF_CLASS_INLINE Sum add(Sum sum, i32v x, i32v w) {
    return (Sum)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
  }
#endif
#endif
};
#elif defined(__x86_64__)
struct ByteProducts {  // channels 0 and 2, then 1 and 3, of 16 bits each
  using Sum = i32v;
  static constexpr const char* kWay = "pmaddwd";
  static constexpr int kVectors = 2, kLatency = 2, kOffset = 0;
  typedef uint16_t u16v __attribute__((vector_size(FF_VEC_BYTES)));
  static FF_CLASS_INLINE i32v operand(const char* x, int which) {
    const i32v word = every_word(x);
    return which ? (i32v)((u16v)word >> 8) : word & 0x00ff00ff;
  }
  static FF_CLASS_INLINE i32v weights(const float* w) { return load_words(w); }
  static FF_CLASS_INLINE Sum add(Sum sum, i32v x, i32v w) {
#if FF_VEC_BYTES == 64
    return sum + (i32v)_mm512_madd_epi16((__m512i)x, (__m512i)w);
#elif FF_VEC_BYTES == 32
    return sum + (i32v)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#else
    return sum + (i32v)_mm_madd_epi16((__m128i)x, (__m128i)w);
#endif
  }
  static FF_CLASS_INLINE void put(char* to, idx apart, idx lane, const int8_t (&w)[4]) {
    for (idx i = 0; i < 4; ++i) {
      const int16_t wide = w[i];
      __builtin_memcpy(to + i % 2 * apart + lane * 4 + i / 2 * 2, &wide, sizeof wide);
    }
  }
};
#else
struct ByteProducts {  // each channel as 32 bits
  using Sum = i32v;
  static constexpr const char* kWay = "int32";
  static constexpr int kVectors = 4, kLatency = 8, kOffset = 0;
  static FF_CLASS_INLINE i32v operand(const char* x, int which) {
    return i32v{} + static_cast<int32_t>(static_cast<uint8_t>(x[which]));
  }
  static FF_CLASS_INLINE i32v weights(const float* w) { return load_words(w); }
  static FF_CLASS_INLINE Sum add(Sum sum, i32v x, i32v w) { return sum + x * w; }
  static FF_CLASS_INLINE void put(char* to, idx apart, idx lane, const int8_t (&w)[4]) {
    for (idx i = 0; i < 4; ++i) {
      const int32_t wide = w[i];
      __builtin_memcpy(to + i * apart + lane * 4, &wide, sizeof wide);
    }
  }
};
#endif

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
