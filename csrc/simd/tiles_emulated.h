// SPDX-License-Identifier: Apache-2.0
// The eight tile instructions that kernels use, bit for bit as Intel's manual has them but for what a NaN carries, on
// any CPU. What the CPU would refuse (#UD, #GP) traps. Included by simd/tiles.h.
#pragma once

namespace ff {
namespace FF_ISA {
namespace {

struct EmulatedTiles {
  TileConfig config;
  alignas(64) unsigned char data[8][16][64] = {};
};
static thread_local EmulatedTiles emulated_tiles;

FF_INLINE void tile_demand(bool good) {
  if (!good) __builtin_trap();
}

inline FF_NOINLINE void tile_configure(const TileConfig& config) {
  tile_demand(config.palette <= 1 && !config.start_row);
  EmulatedTiles& t = emulated_tiles;
  __builtin_memset(t.data, 0, sizeof t.data);
  t.config = config;
  if (!config.palette) t.config = TileConfig();
  for (int i = 0; i < 16; ++i) {
    const bool there = i < 8;
    tile_demand(config.rows[i] <= (there ? 16 : 0) && config.row_bytes[i] <= (there ? 64 : 0));
    tile_demand(!config.rows[i] == !config.row_bytes[i]);
  }
}
FF_INLINE TileConfig tile_configuration() { return emulated_tiles.config; }
FF_INLINE void tile_release() { tile_configure(TileConfig()); }

// Rows of a tile from body(row), which fills 64 bytes in; what the configuration does not have becomes zero.
template <class Body>
FF_INLINE void tile_write(int tile, const Body& body) {
  EmulatedTiles& t = emulated_tiles;
  const int rows = t.config.rows[tile], bytes = t.config.row_bytes[tile];
  tile_demand(t.config.palette == 1 && rows);
  for (int r = 0; r < rows; ++r) {
    body(r, t.data[tile][r]);
    __builtin_memset(t.data[tile][r] + bytes, 0, static_cast<size_t>(64 - bytes));
  }
  __builtin_memset(t.data[tile][rows], 0, static_cast<size_t>(16 - rows) * 64);
}

template <int T>
FF_INLINE void tile_zero() {
  tile_write(T, [](int, unsigned char* row) { __builtin_memset(row, 0, 64); });
}
template <int T>
FF_INLINE void tile_load(const void* from, idx stride) {
  const auto bytes = static_cast<size_t>(emulated_tiles.config.row_bytes[T]);
  tile_write(
      T, [&](int r, unsigned char* row) { __builtin_memcpy(row, static_cast<const char*>(from) + r * stride, bytes); });
}
template <int T>
FF_INLINE void tile_store(void* to, idx stride) {
  const EmulatedTiles& t = emulated_tiles;
  tile_demand(t.config.palette == 1 && t.config.rows[T]);
  for (int r = 0; r < t.config.rows[T]; ++r)
    __builtin_memcpy(static_cast<char*>(to) + r * stride, t.data[T][r], t.config.row_bytes[T]);
}

// Sizes that a product demands; the dwords of a row of A, which are rows of B.
FF_INLINE int tile_depth(int c, int a, int b) {
  const TileConfig& k = emulated_tiles.config;
  tile_demand(k.palette == 1 && c != a && c != b && a != b);
  tile_demand(k.rows[c] == k.rows[a] && k.row_bytes[c] == k.row_bytes[b] && k.row_bytes[a] == 4 * k.rows[b]);
  tile_demand(k.rows[c] && k.row_bytes[c] % 4 == 0 && k.row_bytes[a] % 4 == 0);
  return k.rows[b];
}

// Numbers too small for a normal float32 are zeros, of operands and of results. A sum of double is the product and the
// addend to the last bit, or so far from the middle between two float32 that rounding it again changes nothing. What
// rounds to 2^-126 where exponents have no end is not too small.
FF_INLINE float tile_flushed(float v) { return __builtin_fabsf(v) < 0x1p-126f ? __builtin_copysignf(0.f, v) : v; }
FF_INLINE float tile_rounded(double v) {
  const auto rounded = static_cast<float>(v);
  return __builtin_fabs(v) < 0x1p-126 - 0x1p-151 ? __builtin_copysignf(0.f, rounded) : rounded;
}
FF_INLINE float tile_bf16(const unsigned char* p) {
  uint16_t half = 0;
  __builtin_memcpy(&half, p, sizeof half);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float v = 0;
  __builtin_memcpy(&v, &bits, sizeof v);
  return tile_flushed(v);
}

// Even and odd channels are summed apart, each product in one rounding; then both sums, and that to C. N: columns.
template <int N>
FF_NOINLINE void tile_emulate_bf16(int c, int a, int b, int depth) {
  const EmulatedTiles& t = emulated_tiles;
  float w[2][16][N];
  for (int k = 0; k < depth; ++k)
    for (int n = 0; n < N; ++n)
      for (int i = 0; i < 2; ++i) w[i][k][n] = tile_bf16(t.data[b][k] + 4 * n + 2 * i);
  tile_write(c, [&](int r, unsigned char* row) {
    float sums[2][N] = {}, own[N];
    for (int k = 0; k < depth; ++k)
      for (int i = 0; i < 2; ++i) {
        const double x = static_cast<double>(tile_bf16(t.data[a][r] + 4 * k + 2 * i));
        for (int n = 0; n < N; ++n)
          sums[i][n] = tile_rounded(static_cast<double>(sums[i][n]) + x * static_cast<double>(w[i][k][n]));
      }
    __builtin_memcpy(own, row, sizeof own);
    for (int n = 0; n < N; ++n) own[n] = tile_flushed(tile_flushed(own[n]) + tile_flushed(sums[0][n] + sums[1][n]));
    __builtin_memcpy(row, own, sizeof own);
  });
}
template <int C, int A, int B>
FF_INLINE void tile_dot_bf16() {
  const int depth = tile_depth(C, A, B);
  emulated_tiles.config.row_bytes[C] > 16 ? tile_emulate_bf16<16>(C, A, B, depth)
                                          : tile_emulate_bf16<4>(C, A, B, depth);
}

// Sums wrap around.
inline FF_NOINLINE void tile_emulate_bytes(int c, int a, int b) {
  const int depth = tile_depth(c, a, b);
  const EmulatedTiles& t = emulated_tiles;
  tile_write(c, [&](int r, unsigned char* row) {
    uint32_t sums[16];
    __builtin_memcpy(sums, row, sizeof sums);
    for (int k = 0; k < depth; ++k)
      for (int n = 0; n < 16; ++n)
        for (int i = 0; i < 4; ++i)
          sums[n] += static_cast<uint32_t>(t.data[a][r][4 * k + i] * static_cast<int8_t>(t.data[b][k][4 * n + i]));
    __builtin_memcpy(row, sums, sizeof sums);
  });
}
template <int C, int A, int B>
FF_INLINE void tile_dot_bytes() {
  tile_emulate_bytes(C, A, B);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
