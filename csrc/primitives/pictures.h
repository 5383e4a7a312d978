// SPDX-License-Identifier: Apache-2.0
// Rows of pictures, bytes: what one instruction set computes of them. Plain data only: this header is compiled with and
// without each one's flags.
#pragma once
#include <stdint.h>

#include "core/isa.h"
#include "core/types.h"

namespace ff {
namespace pictures {

// What each pixel of a new row is made of: its `count[x]` old ones from first[x] on, times whole numbers that sum up to
// 2^kBits. weights [x][room / channels][channels]: a pixel's stand once for each channel, zeros after the last of them
// up to `room`, a multiple of kRoom.
constexpr int kBits = 22, kRoom = 16;
struct Taps {
  idx count;  // new pixels
  idx room;
  const idx* first;  // ascending
  const idx* taps;
  const int32_t* weights;
};

// Bytes between neighbouring pixels 1 (grey), 3 or 4; `swapped`: blue, green, red.
struct Colours {
  int step;
  bool swapped;
};

struct Kernels {
  // Luma of `count` pixels of 3 or 4 bytes, ITU-R 601 as Pillow rounds it.
  void (*luma)(const uint8_t* from, Colours colours, idx count, uint8_t* to);
  // Pixels of 3 bytes as pixels of 4, the last one zero.
  void (*spread)(const uint8_t* from, idx count, uint8_t* to);
  // A row of `width` pixels of 1 or 4 bytes to taps.count such pixels.
  void (*across)(const uint8_t* from, idx width, int channels, const Taps& taps, uint8_t* to);
  // to[i] = sum_k rows[k][i] · weights[k], rounded, of `count` bytes.
  void (*down)(const uint8_t* const* rows, const int32_t* weights, idx taps, idx count, uint8_t* to);
  // Of `count` pixels the three colours, each to `to` + colour·plane, `step` bytes from pixel to pixel; red first, or
  // with `swapped` what was last.
  void (*store)(const uint8_t* from, Colours colours, idx count, uint8_t* to, idx step, idx plane);
};

}  // namespace pictures

#define FF_PICTURES(name)                         \
  namespace name {                                \
  extern const pictures::Kernels picture_kernels; \
  }
FF_EACH_ISA(FF_PICTURES)
#undef FF_PICTURES

}  // namespace ff
