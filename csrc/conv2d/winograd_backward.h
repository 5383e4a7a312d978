// SPDX-License-Identifier: Apache-2.0
// Backward by Winograd's algorithm: blocks of rows of tiles of a chunk, while they are in L2. The gradient dy of the
// convolution's output is transformed once, W = A·dy·Aᵀ, and multiplied for each place with the transformed inputs
// (weights) and with the transformed weights (inputs, transformed back and added into dx). The sums of a chunk's weight
// gradient over its tiles are transformed back once.
#pragma once
#include "conv2d/chunks.h"
#include "conv2d/winograd.h"

namespace ff {
namespace FF_ISA {
namespace {

template <class T>
struct WinogradBackward {
  const ConvBackward<T>& conv;
  ConvChunks chunks;
  PlaceWeights<T> u;  // columns c, depth o
  T* parts;  // weight gradients [chunks], `part` elements each in rows of `ld`
  idx part, ld;
  bool columns;  // see windows_are_columns
  double* bias_parts;  // [chunks][bias_stride]
  idx bias_stride;
  bool* direct;  // set for the chunks whose results are not finite
};

// The buffers of a block of tiles, places `in_stride` and `out_stride` apart.
template <class T>
struct WinogradBlock {
  T *v, *w, *g, *products, *sums;
  idx rows, in, out, in_stride, out_stride, ldg, products_ld, products_stride;

  FF_CLASS_INLINE WinogradBlock(const WinogradBackward<T>& p) : v(), w(), g(), products(), sums() {
    constexpr idx kLeast = 1 << 20, kMost = 8 << 20;
    const ConvShape& s = p.conv.s;
    const idx bytes = max_idx(kLeast, min_idx(kMost, kTilePlaces * s.c * s.o * static_cast<idx>(sizeof(T))));
    const Tiles tiles(s);
    in = round_up_lanes<T>(s.c), out = round_up_lanes<T>(s.o), ldg = block_stride<T>(s.o);
    rows = max_idx(1, bytes / (kTilePlaces * tiles.across * (in + out) * static_cast<idx>(sizeof(T))));
    in_stride = place_stride<T>(rows * tiles.across, in), out_stride = place_stride<T>(rows * tiles.across, out);
    products_ld = p.columns ? in : out, products_stride = place_stride<T>(p.columns ? s.o : s.c, products_ld);
    Arena a(Scratch::task);
    v = a.take<T>(kTilePlaces * in_stride), w = a.take<T>(kTilePlaces * out_stride);
    g = a.take<T>(kTileOut * s.ow * ldg), sums = a.take<T>(out);
    products = a.take<T>(p.conv.dw ? kTilePlaces * products_stride : 0);
  }
};

template <class T>
struct WinogradChunk {
  const WinogradBackward<T>& p;
  const ConvBackward<T>& conv;
  const Tiles tiles;
  const ConvChunk rows;
  const WinogradBlock<T>& block;
  double* db;
  idx zeroed;
  bool began = false;

  // w = A·dy·Aᵀ of rows [first, end) of tiles, and the sums of dy.
  void output_grads(idx first, idx end, bool owned) const {
    const ConvShape& s = conv.s;
    for (idx row = first; row < end; ++row) {
      const idx pixel = tiles.first_pixel(row), count = tiles.first_pixel(row + 1) - pixel, lines = count / s.ow;
      output_grad_rows(conv.out, block.g, block.ldg, pixel, count);
      if (owned && conv.out.db) {
        fill_zero(block.sums, s.o);
        sums_rows<T>(block.g, block.ldg, count, s.o, block.sums);
        add_to(db, block.sums, s.o);
      }
      for (idx column = 0; column < tiles.across; ++column)
        transform_gradient((row - first) * tiles.across + column, column * kTileOut, lines);
    }
  }

  FF_CLASS_INLINE void transform_gradient(idx at, idx x0, idx lines) const {
    const ConvShape& s = conv.s;
    const idx columns = min_idx(kTileOut, s.ow - x0);
    for_lanes<T>(s.o, [&](idx o, idx n) {
      const T* from = block.g + x0 * block.ldg + o;
      T* to = block.w + at * block.out + o;
      const auto keep = [&](int i, int j, vec<T> value) { store(to + (i * kTileIn + j) * block.out_stride, value); };
      if (lines == kTileOut && columns == kTileOut && n == lanes<T>)
        transform_tile<T, OutputAdjoint>([&](int i, int j) { return load(from + (i * s.ow + j) * block.ldg); }, keep);
      else
        transform_tile<T, OutputAdjoint>(
            [&](int i, int j) {
              return i < lines && j < columns ? load_n<T>(from + (i * s.ow + j) * block.ldg, n) : vec<T>{};
            },
            keep);
    });
  }

  // For each place the products of `count` tiles: with the inputs, added up, and with the weights, in place of the
  // inputs.
  FF_CLASS_INLINE void multiply(idx count, bool owned) const {
    const ConvShape& s = conv.s;
    for (idx place = 0; place < kTilePlaces; ++place) {
      T *v = block.v + place * block.in_stride, *w = block.w + place * block.out_stride;
      T* sum = block.products + place * block.products_stride;
      if (owned && conv.dw) {
        if (p.columns)
          gemm<T, true>({.a = w,
                         .lda = block.out,
                         .b = v,
                         .ldb = block.in,
                         .c = sum,
                         .ldc = block.products_ld,
                         .rows = s.o,
                         .cols = block.in,
                         .depth = count,
                         .accumulate = began});
        else
          gemm<T, true>({.a = v,
                         .lda = block.in,
                         .b = w,
                         .ldb = block.out,
                         .c = sum,
                         .ldc = block.products_ld,
                         .rows = s.c,
                         .cols = block.out,
                         .depth = count,
                         .accumulate = began});
      }
      if (!conv.dx) continue;
      for (idx col = 0; col < s.c; col += p.u.width(col))
        p.u.multiply(col, place, w, block.out, count, v + col, block.in);
    }
  }

  FF_CLASS_INLINE void zero_before(idx line) {
    const idx end = min_idx(rows.dx_end, line), width = conv.s.w * conv.s.c;
    if (end > zeroed) fill_zero(conv.dx + zeroed * width, (end - zeroed) * width), zeroed = end;
  }

  // dx += B·v·Bᵀ of rows [first, end) of tiles, in the chunk's rows.
  void input_grads(idx first, idx end) {
    const ConvShape& s = conv.s;
    tiles.each(first, end, [&](idx row, idx column, idx at) {
      const idx image = row / tiles.down * s.h, y0 = row % tiles.down * kTileOut - s.top,
                x0 = column * kTileOut - s.left;
      if (column == 0) zero_before(image + ((row + 1) % tiles.down ? min_idx(s.h, max_idx(0, y0 + kTileIn)) : s.h));
      const idx low = max_idx(image, rows.dx_begin), high = min_idx(image + s.h, rows.dx_end), line = image + y0;
      const bool whole = line >= low && line + kTileIn <= high && x0 >= 0 && x0 + kTileIn <= s.w;
      for_lanes<T>(s.c, [&](idx c, idx n) {
        const T* from = block.v + at * block.in + c;
        T* to = conv.dx + (line * s.w + x0) * s.c + c;
        const auto product = [&](int i, int j) { return load(from + (i * kTileIn + j) * block.in_stride); };
        const auto add = [&](int i, int j, vec<T> value, idx valid) {
          T* pixel = to + (i * s.w + j) * s.c;
          store_n<T>(pixel, load_n<T>(pixel, valid) + value, valid);
        };
        if (whole && n == lanes<T>)
          transform_tile<T, InputAdjoint>(product, [&](int i, int j, vec<T> value) { add(i, j, value, lanes<T>); });
        else
          transform_tile<T, InputAdjoint>(product, [&](int i, int j, vec<T> value) {
            if (line + i >= low && line + i < high && x0 + j >= 0 && x0 + j < s.w) add(i, j, value, n);
          });
      });
    });
  }

  // Rows [first, end) of tiles; the weights' gradients only of those the chunk owns.
  FF_CLASS_INLINE void run(idx first, idx end, bool owned) {
    for (; first < end; first += block.rows) {
      const idx last = min_idx(end, first + block.rows);
      output_grads(first, last, owned);
      if (owned && conv.dw) transform_inputs(conv.s, tiles, conv.x, first, last, block.v, block.in_stride);
      multiply((last - first) * tiles.across, owned);
      if (owned) began = true;
      if (conv.dx) input_grads(first, last);
    }
  }

  // part = Gᵀ·products·G; false where a value is not finite.
  bool weight_grads(T* part) const {
    const ConvShape& s = conv.s;
    const idx lines = p.columns ? s.o : s.c, tap = p.columns ? s.c : s.c * p.ld;
    vec<T> bad = {};
    for (idx k = 0; k < lines; ++k)
      for_lanes<T>(p.columns ? s.c : s.o, [&](idx j, idx n) {
        const T* from = block.products + k * block.products_ld + j;
        transform_tile<T, FilterAdjoint>(
            [&](int i, int l) { return load(from + (i * kTileIn + l) * block.products_stride); },
            [&](int i, int l, vec<T> value) {
              bad = bad + (value - value);
              store_n<T>(part + k * p.ld + (i * 3 + l) * tap + j, value, n);
            });
      });
    return sum_lanes<T>(bad) == T(0);
  }
};

// Gradients of all chunks, but of those marked in p.direct; `room` is of o·9·c.
template <class T>
FF_INLINE void winograd_backward_pass(const WinogradBackward<T>& p, T* room) {
  const ConvBackward<T>& conv = p.conv;
  const ConvShape& s = conv.s;
  if (conv.dx) {
    order_taps(room, conv.weight, s, conv.threads);
    for_tasks(s.o, conv.threads, [&](idx o) {
      p.u.fill(o, [&](idx tap, idx col, idx j, idx n) { return load_n<T>(room + (o * 9 + tap) * s.c + col + j, n); });
    });
  }
  for_tasks(p.chunks.count, conv.threads, [&](idx chunk) {
    const Tiles tiles(s);
    const ConvChunk rows = p.chunks.at(s, chunk);
    const WinogradBlock<T> block(p);
    WinogradChunk<T> work{p, conv, tiles, rows, block, p.bias_parts + chunk * p.bias_stride, rows.dx_begin};
    const auto row_of = [&](idx line) { return line / s.oh * tiles.down + ceil_div(line % s.oh, kTileOut); };
    const idx begin = row_of(rows.begin);
    fill_zero(work.db, p.bias_stride);
    if (conv.dx && rows.halo < rows.begin) work.run(begin - 1, begin, false);
    work.run(begin, row_of(rows.end), true);
    const idx line = s.w * s.c;
    p.direct[chunk] = (conv.dw && !(work.began && work.weight_grads(p.parts + chunk * p.part))) ||
                      (conv.dx && !all_finite(conv.dx + rows.dx_begin * line, (rows.dx_end - rows.dx_begin) * line));
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
