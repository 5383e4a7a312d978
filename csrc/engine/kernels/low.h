// SPDX-License-Identifier: Apache-2.0
// Dense convolution of bfloat16 (VDPBF16PS: pairs of channels into float32) and of bytes by int8 weights (VPDPBUSD:
// fours into int32), on the tiles of conv_tile.h. GCC 12 keeps accumulators on the stack when they are arrays of
// __m512i, or cast on their way: sums of bytes are a vector type of their own.
#pragma once
#include "engine/kernels/conv.h"

namespace ff {
namespace FF_ISA {
namespace {

struct Bf16Kind {
  using Acc = vecf;
  static constexpr int kPack = 2, kLatency = 14;
  static FF_CLASS_INLINE Acc start(const float* bias) { return load(bias); }
  static FF_CLASS_INLINE __m512i broadcast(const float* a) {
    int32_t pair = 0;
    __builtin_memcpy(&pair, a, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static FF_CLASS_INLINE __m512i weights(const float* w) { return _mm512_loadu_si512(w); }
  static FF_CLASS_INLINE Acc add(Acc sum, __m512i a, __m512i w) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)w);
  }
};

struct ByteKind {
  typedef int Acc __attribute__((vector_size(64)));
  static constexpr int kPack = 4, kLatency = 8;
  static FF_CLASS_INLINE Acc start(const float*) { return Acc{}; }
  static FF_CLASS_INLINE __m512i broadcast(const float* a) { return Bf16Kind::broadcast(a); }
  static FF_CLASS_INLINE __m512i weights(const float* w) { return _mm512_loadu_si512(w); }
  static FF_CLASS_INLINE Acc add(Acc sum, __m512i a, __m512i w) { return (Acc)_mm512_dpbusd_epi32((__m512i)sum, a, w); }
  static FF_CLASS_INLINE vecf value(Acc sum) { return __builtin_convertvector(sum, vecf); }
};

FF_INLINE idx low_words(Type type, idx in_channels, const Window& w) {
  const idx taps = taps_of(w);
  return type == Type::bfloat16 ? packed_words<Bf16Kind>(in_channels, taps) : packed_words<ByteKind>(in_channels, taps);
}

// Panels, then for bytes the scale and the total of each output channel.
static size_t low_packed(Type type, int in_channels, int out_channels, const Window& w) {
  const idx blocks = blocks_of(out_channels), scales = type == Type::uint8 ? 2 * blocks * L : 0;
  return static_cast<size_t>(blocks * low_words(type, in_channels, w) + scales);
}

FF_INLINE uint16_t bf16_of(float v) {
  bf16 half[L];
  store_as(half, splat(v), {});
  return half[0].bits;
}

// Words of the panels in order: body(word, output, input, tap) with the first input channel of the word.
template <class Body>
FF_INLINE void each_word(int in_channels, int out_channels, const Window& window, int panel, int pack,
                         const Body& body) {
  const idx blocks = blocks_of(out_channels);
  idx word = 0;
  for (idx b = 0; b < blocks; b += panel)
    for (idx c = 0; c < in_channels; c += L)
      for (idx t = 0; t < taps_of(window); ++t)
        for (idx q = c; q < min_idx(c + L, in_channels); q += pack)
          for (idx j = 0; j < min_idx(panel, blocks - b) * L; ++j) body(word++, b * L + j, q, t);
}

static void pack_low(Type type, float* packed, const float* w, int in_channels, int out_channels, const Window& window,
                     int panel) {
  const idx taps = taps_of(window), outputs = blocks_of(out_channels) * L, each = in_channels * taps;
  const auto weight = [&](idx o, idx c, idx t) {
    return o < out_channels && c < in_channels ? w[(o * in_channels + c) * taps + t] : 0.f;
  };
  if (type == Type::bfloat16) {
    each_word(in_channels, out_channels, window, panel, 2, [&](idx word, idx o, idx c, idx t) {
      const uint16_t pair[2] = {bf16_of(weight(o, c, t)), bf16_of(weight(o, c + 1, t))};
      __builtin_memcpy(packed + word, pair, sizeof pair);
    });
    return;
  }
  float *scale = packed + blocks_of(out_channels) * low_words(type, in_channels, window), *total = scale + outputs;
  for (idx o = 0; o < outputs; ++o) {
    float most = 0.f;
    for (idx i = 0; o < out_channels && i < each; ++i) most = __builtin_fmaxf(most, __builtin_fabsf(w[o * each + i]));
    scale[o] = most > 0.f ? most / 127.f : 1.f, total[o] = 0.f;
  }
  each_word(in_channels, out_channels, window, panel, 4, [&](idx word, idx o, idx c, idx t) {
    int8_t four[4];
    for (idx i = 0; i < 4; ++i) {
      four[i] = static_cast<int8_t>(__builtin_rintf(weight(o, c + i, t) / scale[o]));
      total[o] += four[i];
    }
    __builtin_memcpy(packed + word, four, sizeof four);
  });
}

// The scales that tiles multiply with hold the input's scale too: 2·blocks·L floats on the stack of a call at most.
constexpr idx kByteOutputs = 2048;

FF_NOINLINE void conv_bytes(const Conv& c, Part part) {
  const idx outputs = blocks_of(c.y.channels) * L,
            words = blocks_of(c.y.channels) * low_words(c.x_type, c.x.channels, c.window);
  const float* scale = c.weights + words;
  alignas(64) float scaled[kByteOutputs];
  FF_ASSERT(outputs <= kByteOutputs);
  for (idx o = part.b0 * L; o < part.b1 * L; o += L) store(scaled + o, load(scale + o) * splat(c.x_quant.scale));
  conv_of<ByteKind>(c, part, scaled, scale + outputs);
}

static void conv(const Conv& c, Part part) {
  if (c.x_type == Type::bfloat16) return conv_of<Bf16Kind>(c, part, nullptr, nullptr);
  if (c.x_type == Type::uint8) return conv_bytes(c, part);
  FF_ASSERT(c.y_type == Type::float32);
  avx512::engine_kernels().conv(c, part);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
