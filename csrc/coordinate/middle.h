// SPDX-License-Identifier: Apache-2.0
// What lies between the pooled positions and the gates: convolution to few channels, norm, activation, convolution
// back, sigmoid; a block of positions at a time, and the packed weights of it.
#pragma once
#include "coordinate/pool.h"
#include "norm/stats.h"
#include "primitives/local.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr idx kPositions = 56;  // rows of a block: a multiple of the tiles' 14

// Row stride of middle values: the products read whole vectors.
template <class T>
FF_INLINE idx middle_stride(idx middle) {
  return round_up_lanes<T>(middle);
}

template <class T>
FF_INLINE void product(const T* a, idx lda, const T* packed, T* c, idx ldc, idx rows, idx cols, idx depth,
                       const T* bias) {
  gemm<T, false>(
      {.a = a, .lda = lda, .b = packed, .c = c, .ldc = ldc, .rows = rows, .cols = cols, .depth = depth, .bias = bias});
}

template <class T, class Pack>
FF_INLINE void for_column_panels(idx vectors, const Pack& pack) {
  for (idx panel = 0; panel < panel_count<T>(vectors); ++panel) pack(panel);
}

// B = w as the product with [depth] rows wants it; w [cols][depth], or [depth][cols] when `rows`.
template <class T>
FF_INLINE void pack_all(T* packed, const void* w, idx cols, idx depth, bool rows) {
  const T* from = static_cast<const T*>(w);
  for_column_panels<T>(ceil_div(cols, lanes<T>), [&](idx panel) {
    if (rows)
      pack_rows<T>(packed, from, cols, depth, panel);
    else
      pack_transposed<T>(packed, from, nullptr, cols, depth, panel);
  });
}

// The norm's vectors, from statistics.
template <class T>
struct MiddleNorm {
  T *scale, *shift, *mean;

  void take(Arena& a, idx middle) { scale = a.take<T>(middle), shift = a.take<T>(middle), mean = a.take<T>(middle); }
  void fill(const NormParams& norm, const T* stats, idx middle) {
    norm_vectors<T>(static_cast<const T*>(norm.weight), static_cast<const T*>(norm.bias), stats, middle, scale, shift,
                    mean);
  }
};

template <class T>
struct MiddleForward {
  T *squeeze, *bias, *to_rows, *row_bias, *to_cols, *col_bias;  // packed weights and padded biases
  MiddleNorm<T> norm;

  void take(Arena& a, const CoordinateParams& p) {
    squeeze = a.take<T>(packed_size<T>(p.middle, p.c)), bias = a.take<T>(p.middle);
    to_rows = a.take<T>(packed_size<T>(p.c, p.middle)), row_bias = a.take<T>(p.c);
    to_cols = a.take<T>(packed_size<T>(p.c, p.middle)), col_bias = a.take<T>(p.c);
    norm.take(a, p.middle);
  }
  void pack(const CoordinateParams& p) {
    for_tasks(3, p.c * p.middle < (1 << 12) ? 1 : p.threads, [&](idx task) {
      if (task == 0) pack_all<T>(squeeze, p.weight, p.middle, p.c, false);
      if (task == 1) pack_all<T>(to_rows, p.h_weight, p.c, p.middle, false);
      if (task == 2) pack_all<T>(to_cols, p.w_weight, p.c, p.middle, false);
    });
    copy_padded(bias, static_cast<const T*>(p.bias), p.middle);
    for (idx m = 0; m < p.middle && p.kind == Pooling::both; ++m) bias[m] = bias[m] + bias[m];
    copy_padded(row_bias, static_cast<const T*>(p.h_bias), p.c);
    copy_padded(col_bias, static_cast<const T*>(p.w_bias), p.c);
  }
  // z = act(norm(y)) and the gates of `rows` positions, all rows or all columns; z [rows][middle_stride] is scratch.
  void gates(const CoordinateParams& p, bool columns, const T* y, idx ldy, T* z, T* gates, idx rows) const {
    const idx ldz = middle_stride<T>(p.middle);
    affine_act_rows<T>(z, ldz, y, ldy, rows, p.middle, norm.scale, norm.shift, p.act);
    product<T>(z, ldz, columns ? to_cols : to_rows, gates, p.c, rows, p.c, p.middle, columns ? col_bias : row_bias);
    affine_act_rows<T>(gates, p.c, gates, p.c, rows, p.c, nullptr, nullptr, Act::sigmoid);
  }
};

// Runs body(columns, first position, positions) for blocks of the rows, then of the columns.
template <class Body>
FF_INLINE void for_positions(const CoordinateParams& p, const Body& body) {
  const idx rows = p.n * p.h, cols = p.n * p.w, row_blocks = ceil_div(rows, kPositions);
  for_tasks(row_blocks + ceil_div(cols, kPositions), p.threads, [&](idx task) {
    const bool columns = task >= row_blocks;
    const idx at = (columns ? task - row_blocks : task) * kPositions;
    body(columns, columns ? rows + at : at, min_idx(kPositions, (columns ? cols : rows) - at));
  });
}

FF_INLINE idx position_blocks(const CoordinateParams& p) {
  return ceil_div(p.n * p.h, kPositions) + ceil_div(p.n * p.w, kPositions);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
