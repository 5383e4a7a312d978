// SPDX-License-Identifier: Apache-2.0
// Words of weights: two channels of bfloat16, four of int8.
#pragma once
#include "engine/kernels/types.h"
#include "engine/low_tiles.h"

namespace ff {
namespace FF_ISA {
namespace {

using engine::LowRun;
using engine::LowState;
using engine::LowTiles;
using engine::Window;

// The nearest bfloat16, ties to even; NaN stays.
FF_INLINE uint16_t bf16_of(float v) {
  uint32_t bits = 0;
  __builtin_memcpy(&bits, &v, sizeof bits);
  if (v != v) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Weights that stand in a vector as they are: put() writes lane `lane` of a word's.
struct Bf16Words {
  static FF_CLASS_INLINE void put(char* to, idx, idx lane, const float (&w)[2]) {
    const uint16_t pair[2] = {bf16_of(w[0]), bf16_of(w[1])};
    __builtin_memcpy(to + lane * 4, pair, sizeof pair);
  }
};
struct ByteWords {
  static FF_CLASS_INLINE void put(char* to, idx, idx lane, const int8_t (&w)[4]) {
    __builtin_memcpy(to + lane * 4, w, sizeof w);
  }
};

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
