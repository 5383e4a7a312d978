// SPDX-License-Identifier: Apache-2.0
// Tile registers (AMX): eight of up to 16 rows of 64 bytes, whose sizes a configuration tells. With FF_EMULATE_TILES
// they are memory of the thread. T, C, A, B are numbers of tiles:
//   tile_configure(config), tile_configuration(), tile_release()    LDTILECFG, STTILECFG, TILERELEASE
//   tile_zero<T>(), tile_load<T>(from, stride), tile_store<T>(to, stride)
//   tile_dot_bf16<C, A, B>()     C += A·B of pairs of bfloat16 (TDPBF16PS)
//   tile_dot_bytes<C, A, B>()    C += A·B of four bytes each, A's without a sign, B's with one (TDPBUSD)
#pragma once
#include "core/inline.h"

namespace ff {
namespace FF_ISA {
namespace {

struct TileConfig {
  uint8_t palette = 0, start_row = 0, reserved[14] = {};  // palette 0: no tiles
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64, "as LDTILECFG reads it");

}  // namespace
}  // namespace FF_ISA
}  // namespace ff

#if defined(FF_EMULATE_TILES)
#include "simd/tiles_emulated.h"
#else

namespace ff {
namespace FF_ISA {
namespace {

// In words of the assembler: the intrinsics of GCC take no template's number, and say nothing of memory.
FF_INLINE void tile_configure(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" ::"m"(config)); }
FF_INLINE TileConfig tile_configuration() {
  TileConfig config;
  __asm__ volatile("sttilecfg %0" : "=m"(config));
  return config;
}
FF_INLINE void tile_release() { __asm__ volatile("tilerelease"); }

template <int T>
FF_INLINE void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"n"(T));
}
template <int T>
FF_INLINE void tile_load(const void* from, idx stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "n"(T) : "memory");
}
template <int T>
FF_INLINE void tile_store(void* to, idx stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "n"(T) : "memory");
}
template <int C, int A, int B>
FF_INLINE void tile_dot_bf16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(C), "n"(A), "n"(B));
}
template <int C, int A, int B>
FF_INLINE void tile_dot_bytes() {
  __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"n"(C), "n"(A), "n"(B));
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
#endif
