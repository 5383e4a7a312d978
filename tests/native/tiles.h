// SPDX-License-Identifier: Apache-2.0
// The emulated tile instructions against what Intel's manual says of them, element by element.
#pragma once
#include "harness.h"
#define FF_ISA selftest
#define FF_EMULATE_TILES
#include "simd/tiles.h"
#undef FF_ISA
#undef FF_EMULATE_TILES

namespace {

using selftest::TileConfig;

struct TileBytes {
  unsigned char at[16][64];

  template <class T>
  T value(int row, int i) const {
    T v;
    std::memcpy(&v, at[row] + i * static_cast<int>(sizeof v), sizeof v);
    return v;
  }
  float bf16(int row, int i) const { return as_float(static_cast<uint32_t>(value<uint16_t>(row, i)) << 16); }
  void set_bf16(int row, int i, float v) {
    uint32_t bits = 0;
    std::memcpy(&bits, &v, sizeof bits);
    const auto half = static_cast<uint16_t>(bits >> 16);
    std::memcpy(at[row] + 2 * i, &half, sizeof half);
  }
  static float as_float(uint32_t bits) {
    float v = 0;
    std::memcpy(&v, &bits, sizeof v);
    return v;
  }
};

TileBytes tile_bytes(Random& random) {
  TileBytes t;
  for (auto& row : t.at)
    for (unsigned char& byte : row) byte = static_cast<unsigned char>((random.next() + 2) * 64);
  return t;
}

// Sizes of C, A (rows × depth) and B (depth × columns), in dwords.
TileConfig tile_sizes(int rows, int depth, int columns) {
  TileConfig config;
  config.palette = 1;
  for (int tile : {0, 1, 2}) {
    config.rows[tile] = static_cast<uint8_t>(tile == 2 ? depth : rows);
    config.row_bytes[tile] = static_cast<uint16_t>(4 * (tile == 1 ? depth : columns));
  }
  return config;
}

TileBytes tile_product(const TileConfig& config, const TileBytes& c, const TileBytes& a, const TileBytes& b,
                       bool bytes) {
  TileBytes got;
  std::memset(got.at, 99, sizeof got.at);
  selftest::tile_configure(config);
  selftest::tile_load<0>(c.at, 64), selftest::tile_load<1>(a.at, 64), selftest::tile_load<2>(b.at, 64);
  bytes ? selftest::tile_dot_bytes<0, 1, 2>() : selftest::tile_dot_bf16<0, 1, 2>();
  selftest::tile_store<0>(got.at, 64);
  selftest::tile_release();
  return got;
}

float flushed(float v) { return std::fabs(v) < 0x1p-126f ? std::copysign(0.f, v) : v; }

// Bytes that are any numbers at all: NaN, infinities and what is too small for a normal number among them.
void tile_products(int rows, int depth, int columns, Random& random) {
  const TileBytes c = tile_bytes(random), a = tile_bytes(random), b = tile_bytes(random);
  const TileConfig config = tile_sizes(rows, depth, columns);
  const TileBytes floats = tile_product(config, c, a, b, false), whole = tile_product(config, c, a, b, true);
  bool good = true, outside = true;
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      if (m >= rows || n >= columns) {
        for (const TileBytes* t : {&floats, &whole}) outside = outside && t->value<uint32_t>(m, n) == 0x63636363u;
        continue;
      }
      float sums[2] = {};
      auto total = c.value<uint32_t>(m, n);
      for (int k = 0; k < depth; ++k) {
        for (int i : {0, 1})
          sums[i] = flushed(std::fma(flushed(a.bf16(m, 2 * k + i)), flushed(b.bf16(k, 2 * n + i)), sums[i]));
        for (int i = 0; i < 4; ++i)
          total += static_cast<uint32_t>(a.at[m][4 * k + i] * static_cast<int8_t>(b.at[k][4 * n + i]));
      }
      const float want = flushed(flushed(c.value<float>(m, n)) + flushed(sums[0] + sums[1]));
      const auto got = floats.value<float>(m, n);
      good = good && (std::isnan(want) ? std::isnan(got) : !std::memcmp(&got, &want, sizeof got)) &&
             whole.value<uint32_t>(m, n) == total;
    }
  const std::string name =
      "tiles " + std::to_string(rows) + "x" + std::to_string(depth) + "x" + std::to_string(columns);
  check(good, name + ": products"), check(outside, name + ": wrote outside");
}

// 2^-126 + a·b: what is too small is so after rounding to a float32 whose exponent has no end.
float tile_rounding(float a, float b) {
  TileBytes zeros = {}, x = {}, w = {};
  x.set_bf16(0, 0, 0x1p-63f), w.set_bf16(0, 0, 0x1p-63f);
  x.set_bf16(0, 2, a), w.set_bf16(1, 0, b);
  return tile_product(tile_sizes(1, 2, 1), zeros, x, w, false).value<float>(0, 0);
}

void tiles() {
  Random random(18);
  for (int rows : {1, 7, 16})
    for (int depth : {1, 9, 16})
      for (int columns : {1, 4, 5, 16}) tile_products(rows, depth, columns, random);
  check(tile_rounding(0x1p-76f, -0x1p-76f) == 0x1p-126f, "tiles: rounds to a normal number");
  check(tile_rounding(0x1p-76f, -0x1p-75f) == 0x1p-126f, "tiles: the middle rounds to a normal number");
  check(tile_rounding(0x1.8p-76f, -0x1p-75f) == 0.f, "tiles: rounds to what is too small");

  TileBytes zeros = {}, wide = {};
  for (int i = 0; i < 4; ++i) wide.at[0][i] = 255, zeros.at[0][i] = 127;
  const int most = 0x7fffffff;
  TileBytes before = {};
  std::memcpy(before.at[0], &most, sizeof most);
  const auto wrapped = tile_product(tile_sizes(1, 1, 1), before, wide, zeros, true).value<uint32_t>(0, 0);
  check(wrapped == 0x7fffffffu + 4 * 255 * 127, "tiles: sums of bytes wrap around");

  const TileConfig config = tile_sizes(3, 2, 5);
  selftest::tile_configure(config);
  const TileConfig found = selftest::tile_configuration();
  selftest::tile_release();
  const TileConfig none = selftest::tile_configuration(), nothing;
  check(!std::memcmp(&found, &config, sizeof config) && !std::memcmp(&none, &nothing, sizeof none),
        "tiles: the configuration is not what was set");
}

}  // namespace
