// SPDX-License-Identifier: Apache-2.0
// Pointwise convolution over a batch: blocks of pixels, normalised and activated on the way in, multiplied, and
// measured or activated while the result is in L2.
#pragma once
#include "norm/stats.h"
#include "separable_conv/op.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr idx kPackParallel = 1 << 14;  // weights below this are packed by the caller alone

// Rows of a block whose `columns` values a row fit in 512 KiB; a multiple of 42 so that tiles of 14 and 6 rows fit.
template <class T>
FF_INLINE idx block_rows(idx columns) {
  constexpr idx kBytes = 512 << 10, kTile = 42, kMost = 8 * kTile;
  return max_idx(kTile, min_idx(kMost, kBytes / (columns * static_cast<idx>(sizeof(T))) / kTile * kTile));
}

// Row stride of a scratch block: a line more than needed, so that rows do not fall into the same cache set.
template <class T>
FF_INLINE idx block_stride(idx columns) {
  return round_up_lanes<T>(columns) + 64 / static_cast<idx>(sizeof(T));
}

// Runs pack(panel) for each panel of `cols` columns.
template <class T, class Pack>
FF_INLINE void for_panels(idx cols, idx depth, int threads, const Pack& pack) {
  for_tasks(panel_count<T>(ceil_div(cols, lane_count<T>())), cols * depth < kPackParallel ? 1 : threads, pack);
}

template <class T>
struct PointwiseForward {
  idx rows, in, out;
  const T *x, *scale1, *shift1;  // A = act1(x·scale1 + shift1); scale1 null: act1(x)
  Act act1;
  const T *packed, *bias;
  T* y;                          // product
  T *mean, *m2;                  // block moments of y [blocks][stride], or null
  idx stride;
  T* z;                          // act2(y·scale2 + shift2), or null; may be y
  const T *scale2, *shift2;
  Act act2;
  int threads;
};

template <class T>
FF_INLINE void pointwise_forward_pass(const PointwiseForward<T>& p) {
  const idx block = block_rows<T>(p.in + p.out);
  const bool direct = !p.scale1 && p.act1 == Act::none, streamed = p.mean && streamable(p.y, p.rows * p.out, p.out);
  for_tasks(ceil_div(p.rows, block), p.threads, [&](idx b) {
    const idx first = b * block, rows = min_idx(block, p.rows - first);
    const T* a = p.x + first * p.in;
    T *y = p.y + first * p.out, *activated = nullptr, *product = y;
    const idx lda = direct ? p.in : block_stride<T>(p.in), ldy = streamed ? block_stride<T>(p.out) : p.out;
    Arena arena(Scratch::task);
    if (!direct) activated = arena.take<T>(rows * lda);
    if (streamed) product = arena.take<T>(rows * ldy);
    if (!direct) {
      affine_act_rows<T>(activated, lda, a, p.in, rows, p.in, p.scale1, p.shift1, p.act1);
      a = activated;
    }
    Ahead ahead;
    ahead.add(p.x + (first + rows) * p.in, min_idx(block, p.rows - first - rows) * p.in * static_cast<idx>(sizeof(T)));
    gemm<T, false>({.a = a,
                    .lda = lda,
                    .b = p.packed,
                    .c = product,
                    .ldc = ldy,
                    .rows = rows,
                    .cols = p.out,
                    .depth = p.in,
                    .bias = p.bias,
                    .ahead = &ahead});
    if (p.mean)
      moments_rows<T>(product, ldy, rows, p.out, p.mean + b * p.stride, p.m2 + b * p.stride, streamed ? y : nullptr,
                      p.out);
    if (streamed) stream_fence();
    if (p.z) affine_act_rows<T>(p.z + first * p.out, p.out, y, p.out, rows, p.out, p.scale2, p.shift2, p.act2);
  });
}

template <class T>
struct PointwiseBackward {
  idx rows, in, out;
  const T* x;
  NormAct<T> norm1;             // A = act1(norm1(x))
  const T* w;                    // [out][in]
  const T* dz;                   // gradient of act2(norm2(y))
  const T* y;                    // null: dz is the gradient of y itself
  NormAct<T> after;
  const NormGrad<T>* norm2;      // null: no norm2
  T* g;                          // gradient at act1's input [rows][in], or null
  double *sum_g, *sum_gx;        // of g and g·(x - mean1) [chunks][in padded], or null
  T *dw, *db;                    // null where not wanted
  int threads;
  // Where dz is not in memory: writes rows [first, first + rows) of it into a block; dz is null then.
  void (*fill)(const void* context, T* block, idx stride, idx first, idx rows);
  const void* context;
};

// Chunks of blocks with partial sums of their own: enough for many cores, few enough that merging costs little.
template <class T>
FF_INLINE idx backward_chunks(idx rows, idx in, idx out) {
  constexpr idx kMost = 16, kBytes = 16 << 20;
  const idx blocks = ceil_div(rows, block_rows<T>(in + out));
  const idx by_bytes = max_idx(2, kBytes / (in * out * static_cast<idx>(sizeof(T))));
  return max_idx(1, min_idx(min_idx(kMost, by_bytes), min_idx(blocks, max_idx(1, rows / 256))));
}

// Gradient of the pointwise output in `block`, from dz.
template <class T>
FF_INLINE void output_grad_rows(const PointwiseBackward<T>& p, T* block, idx stride, idx first, idx rows) {
  const T* dz = p.fill ? block : p.dz + first * p.out;
  const T* y = p.y ? p.y + first * p.out : nullptr;
  const idx dz_stride = p.fill ? stride : p.out;
  if (p.fill) p.fill(p.context, block, stride, first, rows);
  if (p.norm2)
    norm_act_grad_rows<T>(block, stride, dz, dz_stride, y, p.out, rows, p.out, p.after, *p.norm2);
  else
    act_grad_rows<T>(block, stride, dz, dz_stride, y, p.out, rows, p.out,
                     {nullptr, nullptr, nullptr, y ? p.after.act : Act::none}, nullptr, nullptr);
}

// dw [out][in] and db from partial sums [chunks][out][in padded], [chunks][out padded]; null where not wanted.
template <class T>
FF_INLINE void store_pointwise_grad(const T* parts, double* bias_parts, idx chunks, idx in, idx out, T* dw, T* db,
                                    int threads) {
  const idx in_stride = round_up_lanes<T>(in), part = out * in_stride;
  if (db) {
    fold_parts(bias_parts, chunks, round_up_lanes<T>(out), out);
    for (idx o = 0; o < out; ++o) db[o] = static_cast<T>(bias_parts[o]);
  }
  if (!dw) return;
  for_tasks(out, out * in * chunks < kPackParallel ? 1 : threads,
            [&](idx o) { norm_kernels<T>().sum_parts(dw + o * in, parts + o * in_stride, chunks, part, in); });
}

template <class T>
FF_INLINE void pointwise_backward_pass(const PointwiseBackward<T>& p, Arena& arena) {
  const idx in_stride = round_up_lanes<T>(p.in), out_stride = round_up_lanes<T>(p.out);
  const idx chunks = backward_chunks<T>(p.rows, p.in, p.out), part = p.dw ? p.out * in_stride : 0;
  T* packed = arena.take<T>(p.g ? packed_size<T>(p.in, p.out) : 0);
  T* parts = arena.take<T>(chunks * part);
  double* bias_parts = arena.take<double>(chunks * out_stride);
  if (p.g) for_panels<T>(p.in, p.out, p.threads, [&](idx panel) { pack_rows<T>(packed, p.w, p.in, p.out, panel); });
  const idx block = block_rows<T>(p.in + p.out), blocks = ceil_div(p.rows, block);
  const bool graded = p.sum_g || p.norm1.act != Act::none, streamed = graded && streamable(p.g, p.rows * p.in, p.in);
  for_tasks(chunks, p.threads, [&](idx chunk) {
    const idx lda = block_stride<T>(p.in), ldg = block_stride<T>(p.out);
    T *a_block = nullptr, *g_block = nullptr, *sums = nullptr, *sums_x = nullptr, *da_block = nullptr;
    Arena task(Scratch::task);
    a_block = task.take<T>(block * lda);
    if (streamed) da_block = task.take<T>(block * lda);
    g_block = task.take<T>(block * ldg);
    sums = task.take<T>(max_idx(in_stride, out_stride));
    sums_x = task.take<T>(in_stride);
    T* dw = parts + chunk * part;
    double* db = bias_parts + chunk * out_stride;
    fill_zero(db, out_stride);
    if (p.sum_g) fill_zero(p.sum_g + chunk * in_stride, in_stride), fill_zero(p.sum_gx + chunk * in_stride, in_stride);
    const idx begin = blocks * chunk / chunks, end = blocks * (chunk + 1) / chunks;
    if (p.dw && begin == end) fill_zero(dw, part);
    for (idx b = begin; b < end; ++b) {
      const idx first = b * block, rows = min_idx(block, p.rows - first);
      const T* x = p.x + first * p.in;
      Ahead ahead;
      if (b + 1 < end) {
        const idx next = first + rows, bytes = min_idx(block, p.rows - next) * static_cast<idx>(sizeof(T));
        ahead.add(p.dz ? p.dz + next * p.out : nullptr, bytes * p.out);
        ahead.add(p.y ? p.y + next * p.out : nullptr, bytes * p.out);
        ahead.add(p.x + next * p.in, bytes * p.in);
      }
      output_grad_rows(p, g_block, ldg, first, rows);
      if (p.db) {
        fill_zero(sums, out_stride);
        sums_rows<T>(g_block, ldg, rows, p.out, sums);
        add_to(db, sums, p.out);
      }
      if (p.dw) {
        affine_act_rows<T>(a_block, lda, x, p.in, rows, p.in, p.norm1.scale, p.norm1.shift, p.norm1.act);
        gemm<T, true>({.a = g_block,
                       .lda = ldg,
                       .b = a_block,
                       .ldb = lda,
                       .c = dw,
                       .ldc = in_stride,
                       .rows = p.out,
                       .cols = p.in,
                       .depth = rows,
                       .accumulate = b > begin,
                       .ahead = &ahead});
      }
      if (p.g) {
        T *g = p.g + first * p.in, *da = streamed ? da_block : g;
        const idx ldda = streamed ? lda : p.in;
        gemm<T, false>({.a = g_block,
                        .lda = ldg,
                        .b = packed,
                        .c = da,
                        .ldc = ldda,
                        .rows = rows,
                        .cols = p.in,
                        .depth = p.out,
                        .ahead = &ahead});
        if (!graded) continue;
        fill_zero(sums, in_stride), fill_zero(sums_x, in_stride);
        act_grad_rows<T>(g, p.in, da, ldda, x, p.in, rows, p.in, p.norm1, p.sum_g ? sums : nullptr, sums_x, streamed);
        if (p.sum_g) {
          add_to(p.sum_g + chunk * in_stride, sums, p.in), add_to(p.sum_gx + chunk * in_stride, sums_x, p.in);
        }
      }
    }
    if (streamed) stream_fence();
  });
  store_pointwise_grad(parts, bias_parts, chunks, p.in, p.out, p.dw, p.db, p.threads);
}

template <class T>
FF_INLINE void pack_pointwise(T* packed, const T* w, const T* scale, idx in, idx out, int threads) {
  for_panels<T>(out, in, threads, [&](idx panel) { pack_transposed<T>(packed, w, scale, out, in, panel); });
}

template <class T>
FF_INLINE void pointwise_forward(const PointwiseParams& p) {
  T *packed = nullptr, *bias = nullptr;
  Arena a(Scratch::shared);
  packed = a.take<T>(packed_size<T>(p.out_channels, p.in_channels));
  bias = a.take<T>(p.out_channels);
  pack_pointwise<T>(packed, static_cast<const T*>(p.weight), nullptr, p.in_channels, p.out_channels, p.threads);
  copy_padded(bias, static_cast<const T*>(p.bias), p.out_channels);
  PointwiseForward<T> pass{};
  pass.rows = p.rows, pass.in = p.in_channels, pass.out = p.out_channels, pass.threads = p.threads;
  pass.x = static_cast<const T*>(p.x), pass.packed = packed, pass.bias = bias, pass.y = static_cast<T*>(p.y);
  pointwise_forward_pass(pass);
}

template <class T>
FF_INLINE void pointwise_backward(const PointwiseParams& p) {
  PointwiseBackward<T> pass{};
  pass.rows = p.rows, pass.in = p.in_channels, pass.out = p.out_channels, pass.threads = p.threads;
  pass.x = static_cast<const T*>(p.x), pass.w = static_cast<const T*>(p.weight), pass.dz = static_cast<const T*>(p.dy);
  pass.g = static_cast<T*>(p.dx), pass.dw = static_cast<T*>(p.d_weight), pass.db = static_cast<T*>(p.d_bias);
  Arena arena(Scratch::shared);
  pointwise_backward_pass(pass, arena);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
