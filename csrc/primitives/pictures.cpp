// SPDX-License-Identifier: Apache-2.0
// Rows of pictures for one ISA. Whole numbers throughout, so that all instruction sets give the same bytes.
#include "primitives/pictures.h"
#include "simd/vec.h"

namespace ff {
namespace FF_ISA {
namespace {

using pictures::Colours;
using pictures::Taps;

constexpr idx L = FF_VEC_BYTES / 4;
constexpr int32_t kHalf = 1 << (pictures::kBits - 1);
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef uint8_t u8x4 __attribute__((vector_size(4)));

FF_INLINE i32v load_words(const int32_t* p) {
  i32v v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

// The lanes of four channels, summed over the vector's parts.
FF_INLINE i32x4 fold(i32v v) {
  i32x4 parts[FF_VEC_BYTES / 16];
  __builtin_memcpy(parts, &v, sizeof v);
  FF_UNROLL(4)
  for (int step = FF_VEC_BYTES / 32; step > 0; step /= 2) {
    FF_UNROLL(2)
    for (int i = 0; i < step; ++i) parts[i] += parts[i + step];
  }
  return parts[0];
}

// Rounded, to C bytes.
template <int C>
FF_INLINE void round_to(uint8_t* to, i32x4 sum) {
  if constexpr (C == 4) {
    const u8x4 bytes = __builtin_convertvector((sum + kHalf) >> pictures::kBits, u8x4);
    __builtin_memcpy(to, &bytes, 4);
  } else {
    *to = static_cast<uint8_t>((sum[0] + sum[1] + sum[2] + sum[3] + kHalf) >> pictures::kBits);
  }
}

// Pixel x of the new row; `whole`: there are bytes to read up to the taps' room.
template <int C>
FF_INLINE void one_across(const uint8_t* from, const Taps& t, idx x, bool whole, uint8_t* to) {
  const uint8_t* p = from + C * t.first[x];
  const int32_t* w = t.weights + x * t.room;
  const idx bytes = C * t.taps[x];
  i32v sum = {};
  for (idx i = 0; i < bytes; i += L) {
    const idx n = whole || bytes - i >= L ? L : bytes - i;
    sum += (n == L ? (i32v)widen32(p + i, L) : (i32v)widen32(p + i, n)) * load_words(w + i);
  }
  round_to<C>(to + C * x, fold(sum));
}

template <int C>
void across_of(const uint8_t* from, idx width, const Taps& t, uint8_t* to) {
  idx x = 0;
  for (; x < t.count && C * t.first[x] + t.room <= C * width; ++x) one_across<C>(from, t, x, true, to);
  for (; x < t.count; ++x) one_across<C>(from, t, x, false, to);
}

void across(const uint8_t* from, idx width, int channels, const Taps& taps, uint8_t* to) {
  channels == 4 ? across_of<4>(from, width, taps, to) : across_of<1>(from, width, taps, to);
}

void down(const uint8_t* const* rows, const int32_t* weights, idx taps, idx count, uint8_t* to) {
  for_lanes<float>(count, [&](idx c, idx n) {
    i32v sum = i32v{} + kHalf;
    for (idx k = 0; k < taps; ++k)
      sum += (n == L ? (i32v)widen32(rows[k] + c, L) : (i32v)widen32(rows[k] + c, n)) * weights[k];
    sum >>= pictures::kBits;
    narrow32(to + c, (decltype(widen32(to, n)))sum, n);
  });
}

template <int Step>
FF_INLINE void luma_of(const uint8_t* from, bool swapped, idx count, uint8_t* to) {
  const uint32_t first = swapped ? 7471 : 19595, last = swapped ? 19595 : 7471;
  for (idx i = 0; i < count; ++i) {
    const uint8_t* p = from + Step * i;
    to[i] = static_cast<uint8_t>((p[0] * first + p[1] * 38470u + p[2] * last + 0x8000u) >> 16);
  }
}

void luma(const uint8_t* from, Colours colours, idx count, uint8_t* to) {
  colours.step == 4 ? luma_of<4>(from, colours.swapped, count, to) : luma_of<3>(from, colours.swapped, count, to);
}

void spread(const uint8_t* from, idx count, uint8_t* to) {
  for (idx i = 0; i < count; ++i) {
    const uint8_t* p = from + 3 * i;
    const uint32_t word = p[0] | p[1] << 8 | static_cast<uint32_t>(p[2]) << 16;
    __builtin_memcpy(to + 4 * i, &word, 4);
  }
}

// Planes and pixels of three bytes have loops of their own: strides that the compiler knows are shuffles.
template <int Step>
FF_INLINE void store_of(const uint8_t* from, bool swapped, idx count, uint8_t* to, idx step, idx plane) {
  uint8_t *first = to + (swapped ? 2 * plane : 0), *last = to + (swapped ? 0 : 2 * plane);
  if (step == 1 && plane >= count) {
    uint8_t* __restrict a = first;
    uint8_t* __restrict b = to + plane;
    uint8_t* __restrict c = last;
    for (idx i = 0; i < count; ++i) a[i] = from[Step * i], b[i] = from[Step * i + 1], c[i] = from[Step * i + 2];
    return;
  }
  for (idx i = 0; i < count; ++i) {
    const uint8_t* p = from + Step * i;
    first[i * step] = p[0], to[plane + i * step] = p[1], last[i * step] = p[2];
  }
}

void store_row(const uint8_t* from, Colours colours, idx count, uint8_t* to, idx step, idx plane) {
  colours.step == 4 ? store_of<4>(from, colours.swapped, count, to, step, plane)
                    : store_of<3>(from, colours.swapped, count, to, step, plane);
}

}  // namespace

const pictures::Kernels picture_kernels = {luma, spread, across, down, store_row};

}  // namespace FF_ISA
}  // namespace ff
