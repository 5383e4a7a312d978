// SPDX-License-Identifier: Apache-2.0
// Products of low precision in tile registers. A row of A is a pixel and 64 bytes of what its window reads, a chunk; a
// column of B is an output. Chunks are gathered: a pixel has 32 or 16 bytes of a channel block in one place, and a tile
// takes as long for them as for 64. That costs a row of A two to four loads and stores, beside one cycle of products
// for each channel block of outputs. Two tiles of A by two of B: as many loads as products.
#pragma once
#include "engine/kernels/low_words.h"
#include "simd/tiles.h"

namespace ff {
namespace FF_ISA {
namespace {

#if defined(FF_EMULATE_TILES)
#define FF_TILE_WAY(name) name " (emulated)"
#else
#define FF_TILE_WAY(name) name
#endif

struct Bf16Products : Bf16Words {
  static constexpr const char* kWay = FF_TILE_WAY("tdpbf16ps");
  template <int C, int A, int B>
  static FF_CLASS_INLINE void dot() {
    tile_dot_bf16<C, A, B>();
  }
};
struct ByteProducts : ByteWords {
  static constexpr const char* kWay = FF_TILE_WAY("tdpbusd");
  static constexpr int kOffset = 0;
  template <int C, int A, int B>
  static FF_CLASS_INLINE void dot() {
    tile_dot_bytes<C, A, B>();
  }
};

template <int Bytes>
struct Piece {
  typedef uint8_t V __attribute__((vector_size(Bytes)));
};

// Tiles 0 to 3 are sums: 2·(half of the pixels) + half of the outputs. 4 and 5 hold pixels, 6 and 7 weights.
constexpr idx kTileRows = 16, kTileBytes = 64, kTilePixels = 2 * kTileRows;

// Rows of a tile, for as few tiles as do and as equal ones: 49 pixels are four tiles of 13, not three of 16 and one
// of 1, because a tile takes a cycle for each row.
FF_INLINE idx tile_rows(idx pixels) { return ceil_div(pixels, ceil_div(pixels, kTileRows)); }

template <class Products, int Pack>
struct MatrixTiles {
  static constexpr const char* kWay = Products::kWay;
  static constexpr idx kPiece = 4 * L / Pack, kPieces = kTileBytes / kPiece;  // bytes of a channel block; in a chunk
  static constexpr idx kWeightRow = 4 * L, kWeightTile = kTileRows * kWeightRow;  // bytes
  // What is gathered at once, and its sums: 32 and 16 KiB of the stack for 16 lanes. Longer windows add to sums.
  static constexpr idx kChunks = 16, kPanel = 8;
  static constexpr idx kChunkBytes = kTilePixels * kTileBytes, kBlockSums = kTilePixels * L;
  using V = typename Piece<kPiece>::V;

  static void enter(LowState& before, ptrdiff_t pixels) {
    const TileConfig found = tile_configuration();
    __builtin_memcpy(before.bytes, &found, sizeof found);
    TileConfig own;
    own.palette = 1;
    for (int i = 0; i < 8; ++i) {
      own.rows[i] = static_cast<uint8_t>(i < 6 ? tile_rows(pixels) : kTileRows);
      own.row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? kTileBytes : kWeightRow);
    }
    tile_configure(own);
  }

  // Whoever had tiles of his own finds them configured as before; what they held, no call keeps.
  static void leave(const LowState& before) {
    TileConfig found;
    __builtin_memcpy(&found, before.bytes, sizeof found);
    found.palette ? tile_configure(found) : tile_release();
  }

  static idx chunks_of(idx channels, idx taps) { return ceil_div(ceil_div(channels, L) * taps, kPieces); }
  static size_t block_size(int in_channels, const Window& w) {
    return static_cast<size_t>(chunks_of(in_channels, static_cast<idx>(w.kh) * w.kw) * kTileRows * L);
  }

  // As equal panels as there are, of an even number of blocks.
  static int panel(int, int out_channels, int, int, const Window&) {
    const idx blocks = ceil_div(out_channels, L), panels = ceil_div(blocks, kPanel);
    return static_cast<int>(ceil_div(ceil_div(blocks, panels), 2) * 2);
  }

  // The words of each channel block of outputs in order of tap, channel block of inputs, word; what fills the last
  // chunk up is channels that do not exist.
  template <class Body>
  static void each_word(float* packed, int in_channels, int out_channels, const Window& window, int, const Body& body) {
    const idx taps = static_cast<idx>(window.kh) * window.kw, blocks = ceil_div(in_channels, L),
              pieces = chunks_of(in_channels, taps) * kPieces;
    for (idx o = 0; o < out_channels; o += L)
      for (idx piece = 0; piece < pieces; ++piece) {
        const bool there = piece < taps * blocks;
        for (idx q = 0; q < L; q += Pack, packed += L)
          body(reinterpret_cast<char*>(packed), 0, o, there ? piece % blocks * L + q : in_channels,
               there ? piece / blocks : 0);
      }
  }

  // Where the next piece of a pixel stands.
  struct Place {
    idx k, l, block;
  };

  // A piece of each of `pixels` pixels.
  static FF_CLASS_INLINE void copy(const char* from, idx step, idx pixels, V mask, char* to) {
    FF_PRAGMA(GCC unroll 4)
    for (idx i = 0; i < pixels; ++i, from += step, to += kTileBytes) {
      V v;
      __builtin_memcpy(&v, from, sizeof v);
      v &= mask;
      __builtin_memcpy(to, &v, sizeof v);
    }
  }

  // `chunks` chunks of `pixels` pixels into rows [0, rows) of A. Channels that do not exist become zeros: a NaN among
  // them would come through a weight of 0.
  FF_NOINLINE void gather(const LowRun& t, const char* x, Place& at, idx chunks, idx pixels, idx rows, char* a) {
    const idx blocks = ceil_div(t.channels, L), rest = t.channels - (blocks - 1) * L, step = t.pixel;
    V all, last;
    for (idx i = 0; i < kPiece; ++i) all[i] = 255, last[i] = i < rest * 4 / Pack ? 255 : 0;
    for (idx piece = 0; piece < chunks * kPieces; ++piece) {
      char* to = a + piece / kPieces * kChunkBytes + piece % kPieces * kPiece;
      idx i = 0;
      if (at.k < t.kh) {
        const char* from = x + at.k * t.row + at.l * t.column + at.block * t.block;
        copy(from, step, pixels, at.block == blocks - 1 ? last : all, to), i = pixels;
        if (++at.block == blocks) at.block = 0, ++at.l;
        if (at.l == t.kw) at.l = 0, ++at.k;
      }
      for (; i < rows; ++i) __builtin_memset(to + i * kTileBytes, 0, kPiece);
    }
  }

  // M tiles of pixels by N of outputs; `apart`: bytes from one's weights to the next's. Sums are [output][pixel][L].
  template <int M, int N>
  FF_NOINLINE void multiply(const char* a, idx rows, const char* w, idx apart, idx chunks, bool fresh, char* sums) {
    const idx half = rows * kWeightRow;
    constexpr idx kNext = kBlockSums * 4;
    if (fresh) {
      tile_zero<0>();
      if constexpr (N == 2) tile_zero<1>();
      if constexpr (M == 2) tile_zero<2>();
      if constexpr (M == 2 && N == 2) tile_zero<3>();
    } else {
      tile_load<0>(sums, kWeightRow);
      if constexpr (N == 2) tile_load<1>(sums + kNext, kWeightRow);
      if constexpr (M == 2) tile_load<2>(sums + half, kWeightRow);
      if constexpr (M == 2 && N == 2) tile_load<3>(sums + kNext + half, kWeightRow);
    }
    for (idx q = 0; q < chunks; ++q, a += kChunkBytes, w += kWeightTile) {
      tile_load<4>(a, kTileBytes), tile_load<6>(w, kWeightRow);
      Products::template dot<0, 4, 6>();
      if constexpr (N == 2) tile_load<7>(w + apart, kWeightRow), Products::template dot<1, 4, 7>();
      if constexpr (M == 2) tile_load<5>(a + rows * kTileBytes, kTileBytes), Products::template dot<2, 5, 6>();
      if constexpr (M == 2 && N == 2) Products::template dot<3, 5, 7>();
    }
    tile_store<0>(sums, kWeightRow);
    if constexpr (N == 2) tile_store<1>(sums + kNext, kWeightRow);
    if constexpr (M == 2) tile_store<2>(sums + half, kWeightRow);
    if constexpr (M == 2 && N == 2) tile_store<3>(sums + kNext + half, kWeightRow);
  }

  static void run(const LowRun& t, ptrdiff_t pixels, int blocks) {
    alignas(64) char a[kChunks * kChunkBytes];
    alignas(64) float sums[kPanel * kBlockSums];
    const idx rows = tile_rows(pixels), chunks = chunks_of(t.channels, t.kh * t.kw), apart = chunks * kWeightTile;
    const char* weights = reinterpret_cast<const char*>(t.weights);
    FF_ASSERT(blocks <= kPanel);
    for (idx first = 0; first < pixels; first += 2 * rows) {
      const idx count = min_idx(2 * rows, pixels - first);
      Place at = {0, 0, 0};
      for (idx c = 0; c < chunks; c += kChunks) {
        const idx n = min_idx(kChunks, chunks - c);
        gather(t, t.x + first * t.pixel, at, n, count, ceil_div(count, rows) * rows, a);
        for (idx j = 0; j < blocks; j += 2) {
          const bool both = count > rows, pair = j + 1 < blocks;
          const auto step = both ? pair ? multiply<2, 2> : multiply<2, 1> : pair ? multiply<1, 2> : multiply<1, 1>;
          step(a, rows, weights + j * apart + c * kWeightTile, apart, n, c == 0,
               reinterpret_cast<char*>(sums + j * kBlockSums));
        }
      }
      t.finish(t, sums, kBlockSums, count, blocks, t.at + first * L);
    }
  }
};

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
