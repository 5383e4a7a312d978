// SPDX-License-Identifier: Apache-2.0
// Backward: (1) sums of the norm, (2) over blocks of output pixels, while they are in L2, the gradient dy of the
// convolution's output, its product with the gathered windows (weights) and with the weights (windows, added back into
// dx). The work is cut into chunks of images, or bands of rows of one, with partial weight gradients of their own; a
// chunk owns rows of dx, and computes the windows of the chunk before that reach into them once more.
#pragma once
#include "conv2d/band_backward.h"
#include "conv2d/forward.h"
#include "conv2d/winograd_backward.h"
#include "norm/linked.h"

namespace ff {
namespace FF_ISA {
namespace {

// A chunk's blocks; its partial weight gradient is `part`, of rows of `ld`.
template <class T>
struct ConvBackwardChunk {
  const ConvBackward<T>& p;
  const Windows windows;
  const ConvChunk rows;
  const T* packed;
  T *part, *a, *g, *sums;
  double* db;
  idx depth, lda, ldg, ld, zeroed;
  bool began = false;

  // dx must be zero where the windows of output rows before `row` reach.
  FF_CLASS_INLINE void zero_before(idx row) {
    const ConvShape& s = p.s;
    const idx last = row - 1, reach = min_idx(s.h, max_idx(0, last % s.oh * s.sh - s.top + s.kh));
    const idx end = row == rows.end ? rows.dx_end : min_idx(rows.dx_end, last / s.oh * s.h + reach), line = s.w * s.c;
    if (end <= zeroed) return;
    fill_zero(p.dx + zeroed * line, (end - zeroed) * line);
    zeroed = end;
  }

  FF_CLASS_INLINE void weight_grad(idx first, idx count) {
    gather_windows(windows, p.x, first, count, a, lda);
    if (windows_are_columns<T>(depth, p.s.o))
      gemm<T, true>({.a = g,
                     .lda = ldg,
                     .b = a,
                     .ldb = lda,
                     .c = part,
                     .ldc = ld,
                     .rows = p.s.o,
                     .cols = depth,
                     .depth = count,
                     .accumulate = began});
    else
      gemm<T, true>({.a = a,
                     .lda = lda,
                     .b = g,
                     .ldb = ldg,
                     .c = part,
                     .ldc = ld,
                     .rows = depth,
                     .cols = p.s.o,
                     .depth = count,
                     .accumulate = began});
    began = true;
  }

  FF_CLASS_INLINE void input_grad(idx first, idx count) {
    gemm<T, false>({.a = g, .lda = ldg, .b = packed, .c = a, .ldc = lda, .rows = count, .cols = depth, .depth = p.s.o});
    zero_before((first + count - 1) / p.s.ow + 1);
    scatter_windows(windows, a, lda, first, count, p.dx, rows.dx_begin, rows.dx_end);
  }

  // Output pixels [first, end); the weights' gradients only of those the chunk owns.
  FF_CLASS_INLINE void run(idx first, idx end, idx block, bool owned) {
    const idx o = p.s.o;
    for (; first < end; first += block) {
      const idx count = min_idx(block, end - first);
      output_grad_rows(p.out, g, ldg * p.times, first / p.times, count / p.times);
      if (owned && p.out.db) {
        fill_zero(sums, o);
        sums_rows<T>(g, ldg, count, o, sums);
        add_to(db, sums, o);
      }
      if (owned && p.dw) weight_grad(first, count);
      if (p.dx) input_grad(first, count);
    }
  }
};

template <class T>
FF_INLINE void conv_backward_pass(const ConvBackward<T>& p, Arena& arena) {
  const ConvShape& s = p.s;
  const Windows windows(s);
  const bool tiled = takes_winograd<T>(s) && p.times == 1;
  const ConvChunks chunks = conv_chunks<T>(s, tiled ? kTileOut : 1);
  const idx depth = windows.depth(), out_stride = round_up_lanes<T>(s.o);
  const bool columns = windows_are_columns<T>(depth, s.o);
  const idx ld = columns ? round_up_lanes<T>(depth) : out_stride, lines = columns ? s.o : depth;
  const idx part = p.dw ? lines * ld : 0;
  T* packed = arena.take<T>(p.dx ? packed_size<T>(depth, s.o) : 0);
  T* room = arena.take<T>(p.dx ? depth * s.o : 0);
  T* parts = arena.take<T>(chunks.count * part);
  double* bias_parts = arena.take<double>(chunks.count * out_stride);
  bool* direct = arena.take<bool>(chunks.count);
  PlaceWeights<T> u{arena.take<T>(tiled && p.dx ? PlaceWeights<T>::size(s.c, s.o) : 0), s.c, s.o};
  // Chunks that Winograd's algorithm leaves: what is not finite spreads over a tile, only the direct sum keeps it
  // apart.
  for (idx chunk = 0; chunk < chunks.count; ++chunk) direct[chunk] = !tiled;
  if constexpr (has_winograd<T>) {
    if (tiled)
      winograd_backward_pass<T>({p, chunks, u, parts, part, ld, columns, bias_parts, out_stride, direct}, room);
  }
  bool any = false;
  for (idx chunk = 0; chunk < chunks.count; ++chunk) any |= direct[chunk];
  if (any && p.dx) pack_outputs<T>(packed, room, p.weight, s, p.threads);

  const idx block = max_idx(p.times, block_rows<T>(2 * (depth + s.o)) / p.times * p.times);
  const idx lda = block_stride<T>(depth), ldg = p.times > 1 ? s.o : block_stride<T>(s.o);
  for_tasks(any ? chunks.count : 0, p.threads, [&](idx chunk) {
    if (!direct[chunk]) return;
    const ConvChunk rows = chunks.at(s, chunk);
    T *a = nullptr, *g = nullptr, *sums = nullptr;
    Arena task(Scratch::task);
    a = task.take<T>(block * lda), g = task.take<T>(block * ldg), sums = task.take<T>(out_stride);
    ConvBackwardChunk<T> work{
        p,     windows, rows, packed, parts + chunk * part, a, g, sums, bias_parts + chunk * out_stride,
        depth, lda,     ldg,  ld,     rows.dx_begin};
    fill_zero(work.db, out_stride);
    if (p.dx) work.run(rows.halo * s.ow, rows.begin * s.ow, block, false);
    work.run(rows.begin * s.ow, rows.end * s.ow, block, true);
    if (p.dw && !work.began) fill_zero(work.part, part);
  });
  if (p.out.db) {
    fold_parts(bias_parts, chunks.count, out_stride, s.o);
    for (idx o = 0; o < s.o; ++o) p.out.db[o] = static_cast<T>(bias_parts[o]);
  }
  if (!p.dw) return;
  fold_lines(parts, chunks.count, lines, ld, p.threads);
  unpack_gradient<T>(p.dw, parts, columns ? ld : 1, columns ? 1 : ld, s, p.threads);
}

template <class T>
FF_INLINE void conv_backward(const Conv2dParams& p) {
  const ConvShape& s = p.shape;
  const bool pointwise = is_pointwise(s), pooled = p.pool.kh > 0;
  const idx pixels = s.n * s.oh * s.ow, summed = pooled ? s.n * p.pool.oh * p.pool.ow : pixels;
  Wide v = widened<T>(summed, s.o);
  idx times = pointwise ? 1 : widened<T>(s.ow, s.o).times;
  if (times > 1 && times != v.times) v = Wide{summed, s.o, 1}, times = 1;
  const PooledGradient<T> gradient{pool_of(p), times};
  PointwiseBackward<T> pass{};
  pass.rows = pixels / times, pass.in = s.c, pass.out = s.o * times, pass.threads = p.threads;
  pass.x = static_cast<const T*>(p.x), pass.w = static_cast<const T*>(p.weight), pass.g = static_cast<T*>(p.dx);
  pass.y = static_cast<const T*>(p.y);
  if (pooled)
    pass.fill = PooledGradient<T>::fill, pass.context = &gradient;
  else
    pass.dz = static_cast<const T*>(p.dout);
  pass.dw = static_cast<T*>(p.d_weight), pass.db = static_cast<T*>(p.d_bias);
  Arena a(Scratch::shared);
  NormBackward<T> norm;
  norm.take(a, p.norm, s.o, v);
  NormGrad<T> linked{};
  if (p.linked_output.on) {
    linked = linked_gradient<T>(a, p.norm.stats, p.linked_output, s.o, pixels, v.times);
    norm.form = &linked;
  }
  if (norm.n.scale)
    norm.run(p.norm, s.o, v, static_cast<const T*>(p.dout), pooled ? static_cast<const T*>(p.best) : pass.y, p.act,
             p.batch_stats, p.threads, pixels);
  pass.after = norm.norm_act(p.act), pass.norm2 = norm.form;
  if (pointwise)
    pointwise_backward_pass(pass, a);
  else if (is_backward_banded<T>(s) && !takes_winograd<T>(s))
    band_backward_pass<T>(s, pass, times, a);
  else
    conv_backward_pass<T>({s, pass, times, pass.x, pass.w, pass.g, pass.dw, p.threads}, a);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
