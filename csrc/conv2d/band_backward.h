// SPDX-License-Identifier: Apache-2.0
// Backward of a convolution of stride 1 that keeps the image's size, by bands of rows in L1: the gradient dy of its
// output between zeros, with kh - 1 rows of it computed again, is convolved with the weights turned round for dx, and
// multiplied with a band of x for the weights' gradient, one product a kernel row. Neither windows nor their gradients
// are written.
#pragma once
#include "conv2d/bands.h"

namespace ff {
namespace FF_ISA {
namespace {

// Whether it has such a backward, and runs of a window fill vectors.
template <class T>
FF_INLINE bool is_backward_banded(const ConvShape& s) {
  return is_banded(s) && s.c <= kBandOutputs && s.kw * s.c >= lanes<T> && s.sh == 1 && s.sw == 1 && s.oh == s.h &&
         s.ow == s.w;
}

// The convolution from dy to dx; w [o][c][kh][kw] becomes `turned` [c][o][kh][kw].
FF_INLINE ConvShape turned_shape(const ConvShape& s) {
  return {s.n, s.oh, s.ow, s.o, s.c, s.h, s.w, s.kh, s.kw, 1, 1, s.kh - 1 - s.top, s.kw - 1 - s.left};
}
template <class T>
FF_INLINE void turn_weights(const T* w, const ConvShape& s, T* turned) {
  const idx taps = s.kh * s.kw;
  for (idx o = 0; o < s.o; ++o)
    for (idx c = 0; c < s.c; ++c)
      for (idx tap = 0; tap < taps; ++tap)
        turned[(c * s.o + o) * taps + taps - 1 - tap] = w[(o * s.c + c) * taps + tap];
}

// out[i][·] (+)= sum over rows r and pixels p of g[r·g_line + p·g_step + i]·x[r·x_line + p·x_step + ·]
template <class T>
struct BandGrad {
  const T* g;
  idx g_line, g_step;
  const T* x;
  idx x_line, x_step, rows, pixels;
  T* out;
  idx ld;
  bool accumulate;
};

template <class T, int MR, int NR>
FF_NOINLINE void grad_tile(const BandGrad<T>& p, idx i0, idx col) {
  constexpr idx L = lanes<T>;
  T* out = p.out + i0 * p.ld + col;
  vec<T> acc[MR][NR];
  FF_UNROLL(16)
  for (int i = 0; i < MR; ++i) {
    FF_UNROLL(4)
    for (int j = 0; j < NR; ++j) acc[i][j] = p.accumulate ? load(out + i * p.ld + j * L) : vec<T>{};
  }
  for (idx r = 0; r < p.rows; ++r) {
    const T *g = p.g + r * p.g_line + i0, *x = p.x + r * p.x_line + col;
    for (idx pixel = 0; pixel < p.pixels; ++pixel, g += p.g_step, x += p.x_step) {
      vec<T> x_v[NR];
      FF_UNROLL(4)
      for (int j = 0; j < NR; ++j) x_v[j] = in_register<T>(load(x + j * L));
      FF_UNROLL(16)
      for (int i = 0; i < MR; ++i) {
        const vec<T> g_v = splat<T>(g[i]);
        FF_UNROLL(4)
        for (int j = 0; j < NR; ++j) acc[i][j] = fma(g_v, x_v[j], acc[i][j]);
      }
    }
  }
  FF_UNROLL(16)
  for (int i = 0; i < MR; ++i) {
    FF_UNROLL(4)
    for (int j = 0; j < NR; ++j) store(out + i * p.ld + j * L, acc[i][j]);
  }
}

template <class T, int MR, int NR>
FF_INLINE void grad_tiles(const BandGrad<T>& p, idx i, idx lines, idx col) {
  for (; i + MR <= lines; i += MR) grad_tile<T, MR, NR>(p, i, col);
  if constexpr (MR > 1) {
    if (i < lines) grad_tiles<T, MR / 2, NR>(p, i, lines, col);
  }
}

// `columns` of x, in whole vectors.
template <class T>
FF_INLINE void band_grad(const BandGrad<T>& p, idx lines, idx columns) {
  constexpr int kRows = kRegisters == 32 ? 8 : 4;
  idx col = 0;
  for (; col + lanes<T> < columns; col += 2 * lanes<T>) grad_tiles<T, kRows, 2>(p, 0, lines, col);
  if (col < columns) grad_tiles<T, 8, 1>(p, 0, lines, col);
}

// What all chunks share; `out` gives dy, `times` pixels as one row, see Wide, and holds x, the weights and the results.
template <class T>
struct BandBackward {
  ConvShape s, turned;
  const PointwiseBackward<T>& out;
  idx times, ld;               // of a kernel row's gradients [o][ld]
  ForwardWeights<T> w;
};

// A chunk's rows, of all images; its partial gradients are `part` and `db`.
template <class T>
struct BandBackwardChunk {
  const BandBackward<T>& b;
  T *part, *g, *x, *sums;
  double* db;
  bool began = false;

  // Rows [first, first + rows) of an image.
  FF_CLASS_INLINE void run(idx image, idx first, idx rows) {
    const ConvShape& s = b.s;
    const PointwiseBackward<T>& out = b.out;
    const Band grads(b.turned);
    const idx wide = s.o * b.times, per_row = s.ow / b.times;
    fill_band<T>(grads, first - b.turned.top, rows + s.kh - 1, g, [&](T* to, idx row, idx, idx) {
      output_grad_rows(out, to, wide, (image * s.oh + row) * per_row, per_row);
    });
    const T* owned = g + b.turned.top * grads.line + b.turned.left * s.o;
    if (out.db) {
      fill_zero(sums, wide);
      for (idx r = 0; r < rows; ++r) sums_rows<T>(owned + r * grads.line, wide, per_row, wide, sums);
      add_to(db, sums, wide);
    }
    if (out.dw) {
      const Band images(s);
      copy_band<T>(images, out.x + image * s.h * s.w * s.c, first - s.top, rows + s.kh - 1, x);
      for (idx k = 0; k < s.kh; ++k)
        band_grad<T>({owned, grads.line, s.o, x + k * images.line, images.line, s.c, rows, s.ow, part + k * s.o * b.ld,
                      b.ld, began},
                     s.o, s.kw * s.c);
      began = true;
    }
    const T inf = T(__builtin_inf());
    if (out.g) convolve_band<T>(b.turned, b.w, -inf, inf, g, rows, out.g + (image * s.h + first) * s.w * s.c);
  }
};

template <class T>
FF_INLINE void band_backward_pass(const ConvShape& s, const PointwiseBackward<T>& out, idx times, Arena& arena) {
  BandBackward<T> b{s, turned_shape(s), out, times, round_up_lanes<T>(s.kw * s.c), {}};
  const idx lines = s.kh * s.o, part = out.dw ? lines * b.ld : 0, wide = round_up_lanes<T>(s.o * times),
            all = s.n * s.oh;
  const idx chunks = max_idx(1, min_idx(all, backward_chunks<T>(all * s.ow, Windows(s).depth(), s.o)));
  b.w.take(arena, b.turned, pixel_group<T>(b.turned));
  T* turned = arena.take<T>(s.o * s.c * s.kh * s.kw);
  T* parts = arena.take<T>(chunks * part);
  double* bias_parts = arena.take<double>(chunks * wide);
  copy_padded<T>(b.w.bias, nullptr, s.c);
  turn_weights(out.w, s, turned);
  b.w.pack(turned, nullptr, b.turned, out.threads);

  const idx rows = band_rows<T>(b.turned);
  for_tasks(chunks, out.threads, [&](idx chunk) {
    T *g = nullptr, *x = nullptr, *sums = nullptr;
    Arena task(Scratch::task);
    g = task.take<T>(Band(b.turned).size<T>(rows + s.kh - 1));
    x = task.take<T>(Band(s).size<T>(rows + s.kh - 1));
    sums = task.take<T>(wide);
    BandBackwardChunk<T> work{b, parts + chunk * part, g, x, sums, bias_parts + chunk * wide};
    fill_zero(work.db, wide);
    const idx begin = all * chunk / chunks, end = all * (chunk + 1) / chunks;
    for_parts(s.oh, begin, end - begin, [&](idx image, idx first, idx count, idx) {
      for (idx r = 0; r < count; r += rows) work.run(image, first + r, min_idx(rows, count - r));
    });
    if (out.dw && !work.began) fill_zero(work.part, part);
  });
  if (out.db) {
    fold_parts(bias_parts, chunks, wide, s.o * times);
    fold_parts(bias_parts, times, s.o, s.o);
    for (idx o = 0; o < s.o; ++o) out.db[o] = static_cast<T>(bias_parts[o]);
  }
  if (!out.dw) return;
  fold_lines(parts, chunks, lines, b.ld, out.threads);
  for_tasks(s.o, part < kPackParallel ? 1 : out.threads, [&](idx o) {
    for (idx c = 0; c < s.c; ++c)
      for (idx k = 0; k < s.kh; ++k)
        for (idx l = 0; l < s.kw; ++l)
          out.dw[((o * s.c + c) * s.kh + k) * s.kw + l] = parts[(k * s.o + o) * b.ld + l * s.c + c];
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
