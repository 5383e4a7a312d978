// SPDX-License-Identifier: Apache-2.0
// Coordinate attention, backward: (1) x and dout -> gradients of the gates; (2) the middle, over positions; (3) the
// parameters; (4) dout -> dx.
#pragma once
#include "coordinate/middle.h"

namespace ff {
namespace FF_ISA {
namespace {

// Gradients at the inputs of the sigmoids of rows and columns, channels of an image: sums of dout · x · the other gate,
// times the sigmoid's slope. `sums` [w][stride] is scratch.
template <class T>
FF_NOINLINE void gate_gradients(const T* x, const T* dout, const ImageSize& s, idx first, idx count, const T* row_gates,
                                const T* col_gates, T* d_rows, T* d_cols, T* sums, idx stride) {
  const vec<T> one = splat<T>(1);
  fill_zero(sums, s.w * stride);
  for (idx i = 0; i < s.h; ++i) {
    for_groups<T>(count, [&](auto group, idx at, idx n) {
      constexpr int V = decltype(group)::value;
      const idx c = first + at;
      vec<T> gate[V], sum[V];
      FF_UNROLL(4)
      for (int u = 0; u < V; ++u) gate[u] = load_n<T>(row_gates + i * s.c + c + u * lanes<T>, n), sum[u] = vec<T>{};
      for (idx j = 0; j < s.w; ++j) {
        FF_UNROLL(4)
        for (int u = 0; u < V; ++u) {
          const idx pixel = (i * s.w + j) * s.c + c + u * lanes<T>, to = j * stride + at + u * lanes<T>;
          __builtin_prefetch(x + pixel + s.w * s.c), __builtin_prefetch(dout + pixel + s.w * s.c);
          const vec<T> v = load_n<T>(x + pixel, n) * load_n<T>(dout + pixel, n);
          sum[u] = fma(v, load_n<T>(col_gates + j * s.c + c + u * lanes<T>, n), sum[u]);
          store(sums + to, fma(v, gate[u], load(sums + to)));
        }
      }
      FF_UNROLL(4)
      for (int u = 0; u < V; ++u)
        store_n<T>(d_rows + i * s.c + c + u * lanes<T>, sum[u] * gate[u] * (one - gate[u]), n);
    });
  }
  for (idx j = 0; j < s.w; ++j) {
    for_lanes<T>(count, [&](idx at, idx n) {
      const vec<T> gate = load_n<T>(col_gates + j * s.c + first + at, n);
      store_n<T>(d_cols + j * s.c + first + at, load(sums + j * stride + at) * gate * (one - gate), n);
    });
  }
}

template <class T>
struct MiddleBackward {
  T *from_rows, *from_cols, *unsqueeze;  // packed weights
  MiddleNorm<T> norm;
  T *d_logits, *z, *dy, *d_pooled;       // [positions] rows of c, middle_stride, middle_stride, c
  T *slope, *curve, *offset;
  double *sums, *sums_x;                 // [blocks][stride]

  void take(Arena& a, const CoordinateParams& p) {
    const idx positions = p.n * (p.h + p.w), ld = middle_stride<T>(p.middle);
    from_rows = a.take<T>(packed_size<T>(p.middle, p.c)), from_cols = a.take<T>(packed_size<T>(p.middle, p.c));
    unsqueeze = a.take<T>(packed_size<T>(p.c, p.middle));
    norm.take(a, p.middle);
    d_logits = a.take<T>(positions * p.c), d_pooled = a.take<T>(p.dx ? positions * p.c : 0);
    z = a.take<T>(positions * ld), dy = a.take<T>(positions * ld);
    slope = a.take<T>(p.middle), curve = a.take<T>(p.middle), offset = a.take<T>(p.middle);
    sums = a.take<double>(max_idx(1, position_blocks(p)) * ld),
    sums_x = a.take<double>(max_idx(1, position_blocks(p)) * ld);
  }
};

// d_logits -> dy, the gradient before the norm, and its own two; then d_pooled.
template <class T>
FF_INLINE void middle_backward(const CoordinateParams& p, MiddleBackward<T>& b) {
  const idx ld = middle_stride<T>(p.middle), rows = p.n * p.h, row_blocks = ceil_div(rows, kPositions);
  const T *y = static_cast<const T*>(p.y), *stats = static_cast<const T*>(p.norm.stats);
  const NormAct<T> act{b.norm.scale, b.norm.shift, b.norm.mean, p.act};
  fill_zero(b.sums, ld), fill_zero(b.sums_x, ld);
  for_positions(p, [&](bool columns, idx first, idx count) {
    T *sums = nullptr, *sums_x = nullptr, *dz = b.dy + first * ld;
    Arena a(Scratch::task);
    sums = a.take<T>(ld), sums_x = a.take<T>(ld);
    fill_zero(sums, ld), fill_zero(sums_x, ld);
    affine_act_rows<T>(b.z + first * ld, ld, y + first * p.middle, p.middle, count, p.middle, b.norm.scale,
                       b.norm.shift, p.act);
    product<T>(b.d_logits + first * p.c, p.c, columns ? b.from_cols : b.from_rows, dz, ld, count, p.middle, p.c,
               nullptr);
    act_grad_rows<T>(dz, ld, dz, ld, y + first * p.middle, p.middle, count, p.middle, act, sums, sums_x);
    const idx block = columns ? row_blocks + (first - rows) / kPositions : first / kPositions;
    for (idx m = 0; m < ld; ++m) b.sums[block * ld + m] = sums[m], b.sums_x[block * ld + m] = sums_x[m];
  });
  norm_backward_vectors<T>(static_cast<const T*>(p.norm.weight), stats, p.middle, b.sums, b.sums_x, position_blocks(p),
                           ld, static_cast<double>(max_idx(1, p.n * (p.h + p.w))), p.batch_stats, b.slope, b.curve,
                           b.offset, static_cast<T*>(p.norm.d_weight), static_cast<T*>(p.norm.d_bias));
  for_positions(p, [&](bool, idx first, idx count) {
    T* dy = b.dy + first * ld;
    norm_act_grad_rows<T>(dy, ld, dy, ld, y + first * p.middle, p.middle, count, p.middle,
                          {b.norm.scale, b.norm.shift, b.norm.mean, Act::none}, {b.slope, b.curve, b.offset});
    if (p.dx) product<T>(dy, ld, b.unsqueeze, b.d_pooled + first * p.c, p.c, count, p.c, p.middle, nullptr);
  });
}

// Column sums of g [rows][stride], times `factor`, into out.
template <class T>
FF_INLINE void column_sums(T* out, const T* g, idx stride, idx rows, idx columns, T factor) {
  T* sums = nullptr;
  Arena a(Scratch::task);
  sums = a.take<T>(columns);
  fill_zero(sums, round_up_lanes<T>(columns));
  sums_rows<T>(g, stride, rows, columns, sums);
  for (idx c = 0; c < columns; ++c) out[c] = sums[c] * factor;
}

// Weights' and biases' gradients, blocks of channels: d_h_weight = d_logitsᵀ · z of the rows, d_w_weight of the
// columns, d_weight = dyᵀ · pooled of both.
template <class T>
FF_INLINE void parameter_gradients(const CoordinateParams& p, const MiddleBackward<T>& b) {
  constexpr idx kChannels = 56;
  const idx ld = middle_stride<T>(p.middle), rows = p.n * p.h, cols = p.n * p.w, blocks = ceil_div(p.c, kChannels);
  for_tasks(3 * blocks + 1, p.threads, [&](idx task) {
    const idx side = task / blocks, c = task % blocks * kChannels, count = min_idx(kChannels, p.c - c);
    if (side == 3) {
      column_sums<T>(static_cast<T*>(p.d_bias), b.dy, ld, rows + cols, p.middle, T(p.kind == Pooling::both ? 2 : 1));
      return;
    }
    if (side == 2) {
      T* transposed = nullptr;
      Arena a(Scratch::task);
      transposed = a.take<T>(kChannels * p.middle);
      gemm<T, true>({.a = static_cast<const T*>(p.pooled) + c,
                     .lda = p.c,
                     .b = b.dy,
                     .ldb = ld,
                     .c = transposed,
                     .ldc = p.middle,
                     .rows = count,
                     .cols = p.middle,
                     .depth = rows + cols});
      for (idx m = 0; m < p.middle; ++m)
        for (idx k = 0; k < count; ++k) static_cast<T*>(p.d_weight)[m * p.c + c + k] = transposed[k * p.middle + m];
      return;
    }
    const T *d_logits = b.d_logits + (side ? rows * p.c : 0) + c, *z = b.z + (side ? rows * ld : 0);
    T* d_weight = static_cast<T*>(side ? p.d_w_weight : p.d_h_weight) + c * p.middle;
    const idx depth = side ? cols : rows;
    gemm<T, true>({.a = d_logits,
                   .lda = p.c,
                   .b = z,
                   .ldb = ld,
                   .c = d_weight,
                   .ldc = p.middle,
                   .rows = count,
                   .cols = p.middle,
                   .depth = depth});
    column_sums<T>(static_cast<T*>(side ? p.d_w_bias : p.d_h_bias) + c, d_logits, p.c, depth, count, T(1));
  });
}

template <class T>
FF_NOINLINE void spread_kind(Pooling kind, T* dx, const T* dout, const ImageSize& s, idx first, idx count,
                             const Spread<T>& g) {
  if (kind == Pooling::mean) spread_image<T, true, true, false>(dx, dout, s, first, count, g);
  if (kind == Pooling::max) spread_image<T, true, false, true>(dx, dout, s, first, count, g);
  if (kind == Pooling::both) spread_image<T, true, true, true>(dx, dout, s, first, count, g);
}

template <class T>
FF_INLINE void attention_backward(const CoordinateParams& p) {
  const ImageSize s{p.h, p.w, p.c};
  const idx rows = p.n * p.h;
  const T *x = static_cast<const T*>(p.x), *dout = static_cast<const T*>(p.dout),
          *gates = static_cast<const T*>(p.gates);
  const T* at = static_cast<const T*>(p.at);
  MiddleBackward<T> b{};
  Arena a(Scratch::shared);
  b.take(a, p);
  for_tasks(3, p.c * p.middle < (1 << 12) ? 1 : p.threads, [&](idx task) {
    if (task == 0) pack_all<T>(b.from_rows, p.h_weight, p.middle, p.c, true);
    if (task == 1) pack_all<T>(b.from_cols, p.w_weight, p.middle, p.c, true);
    if (task == 2 && p.dx) pack_all<T>(b.unsqueeze, p.weight, p.c, p.middle, true);
  });
  b.norm.fill(p.norm, static_cast<const T*>(p.norm.stats), p.middle);
  for_blocks(p.n, p.c, p.threads, [&](idx image, idx first, idx count) {
    Columns<T> columns{};
    Arena a(Scratch::task);
    columns.take(a, p.w, count);
    const idx pixels = image * p.h * p.w * p.c, row = image * p.h * p.c, col = (rows + image * p.w) * p.c;
    gate_gradients<T>(x + pixels, dout + pixels, s, first, count, gates + row, gates + col, b.d_logits + row,
                      b.d_logits + col, columns.sum, columns.stride);
  });
  middle_backward<T>(p, b);
  if (p.d_weight) parameter_gradients<T>(p, b);
  if (!p.dx) return;
  for_blocks(p.n, p.c, p.threads, [&](idx image, idx first, idx count) {
    const idx pixels = image * p.h * p.w * p.c, row = image * p.h * p.c, col = (rows + image * p.w) * p.c;
    const T *d_row = b.d_pooled + row, *d_col = b.d_pooled + col;
    spread_kind<T>(
        p.kind, static_cast<T*>(p.dx) + pixels, dout + pixels, s, first, count,
        {d_row, d_row, at ? at + row : nullptr, gates + row, d_col, d_col, at ? at + col : nullptr, gates + col});
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
