// SPDX-License-Identifier: Apache-2.0
// Forward by Winograd's algorithm: blocks of rows of tiles are transformed, multiplied and transformed back while they
// are in L2.
#pragma once
#include "conv2d/winograd.h"

namespace ff {
namespace FF_ISA {
namespace {

// How the rows of tiles are cut.
struct TileBlocks {
  Tiles tiles;
  idx rows, count;             // rows of tiles of a block, blocks

  FF_CLASS_INLINE idx end(idx block) const { return min_idx(tiles.rows, (block + 1) * rows); }
  FF_CLASS_INLINE idx first_pixel(idx block) const { return tiles.first_pixel(block * rows); }
  FF_CLASS_INLINE idx pixels(idx block) const { return tiles.first_pixel(end(block)) - first_pixel(block); }
};

// Blocks whose transformed inputs and products, of a panel of outputs at a time, stay in L2.
template <class T>
FF_INLINE TileBlocks tile_blocks(const ConvShape& s) {
  constexpr idx kBytes = 640 << 10;
  const Tiles tiles(s);
  const idx row = kTilePlaces * max_idx(1, tiles.across) * (s.c + 2 * lanes<T>)*static_cast<idx>(sizeof(T));
  const idx rows = max_idx(1, kBytes / row);
  return {tiles, rows, ceil_div(tiles.rows, rows)};
}

template <class T>
struct WinogradForward {
  ConvShape s;
  TileBlocks blocks;
  const T *x, *bias;
  PlaceWeights<T> u;
  T* y;
  int threads;
};

// The weights, from those of the direct product (pack_windows).
template <class T>
FF_INLINE void transform_windows(const PlaceWeights<T>& u, const T* direct, const ConvShape& s, int threads) {
  for_tasks(s.c, threads, [&](idx c) {
    u.fill(c, [&](idx tap, idx col, idx j, idx) {
      return load(direct + col * s.c * 9 + (tap * s.c + c) * u.width(col) + j);
    });
  });
}

// y = Aᵀ·m·A + bias of the tiles of rows [first, end) for the outputs [col, col + width).
template <class T>
FF_NOINLINE void transform_outputs(const WinogradForward<T>& p, idx first, idx end, const T* m, idx stride, idx col,
                                   idx width) {
  const Tiles& tiles = p.blocks.tiles;
  const idx o = p.s.o, line = p.s.ow * o;
  tiles.each(first, end, [&](idx row, idx column, idx at) {
    T* y = p.y + (tiles.first_pixel(row) + column * kTileOut) * o + col;
    const idx rows = min_idx(kTileOut, p.s.oh - row % tiles.down * kTileOut);
    const idx columns = min_idx(kTileOut, p.s.ow - column * kTileOut);
    const bool whole = rows == kTileOut && columns == kTileOut;
    for (idx k = 0; k < width; k += lanes<T>) {
      const idx n = min_idx(lanes<T>, o - col - k);
      const vec<T> bias = load(p.bias + col + k);
      const T* from = m + at * width + k;
      const auto product = [&](int i, int j) { return load(from + (i * kTileIn + j) * stride); };
      if (whole && n == lanes<T>)
        transform_tile<T, OutputTransform>(
            product, [&](int i, int j, vec<T> value) { store(y + i * line + j * o + k, value + bias); });
      else
        transform_tile<T, OutputTransform>(product, [&](int i, int j, vec<T> value) {
          if (i < rows && j < columns) store_n<T>(y + i * line + j * o + k, value + bias, n);
        });
    }
  });
}

// y = convolution + bias; after(block, first pixel, pixels) runs when a block is done.
template <class T, class After>
FF_INLINE void winograd_forward_pass(const WinogradForward<T>& p, const After& after) {
  const TileBlocks& blocks = p.blocks;
  const idx in = round_up_lanes<T>(p.s.c), most = blocks.rows * blocks.tiles.across;
  const idx in_stride = place_stride<T>(most, in), out_stride = place_stride<T>(most, 3 * lanes<T>);
  for_tasks(blocks.count, p.threads, [&](idx b) {
    const idx first = b * blocks.rows, end = blocks.end(b), count = (end - first) * blocks.tiles.across;
    T *v = nullptr, *m = nullptr;
    Arena arena(Scratch::task);
    v = arena.take<T>(kTilePlaces * in_stride), m = arena.take<T>(kTilePlaces * out_stride);
    transform_inputs(p.s, blocks.tiles, p.x, first, end, v, in_stride);
    for (idx col = 0; col < p.s.o; col += p.u.width(col)) {
      const idx width = p.u.width(col);
      for (idx place = 0; place < kTilePlaces; ++place)
        p.u.multiply(col, place, v + place * in_stride, in, count, m + place * out_stride, width);
      transform_outputs(p, first, end, m, out_stride, col, width);
    }
    after(b, blocks.first_pixel(b), blocks.pixels(b));
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
