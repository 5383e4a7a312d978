// SPDX-License-Identifier: Apache-2.0
// Weighted sums of pixels: other sizes of an image, and products of matrices.
#pragma once
#include "engine/kernels/tensor.h"

namespace ff {
namespace FF_ISA {
namespace {

template <bool Maximum>
FF_INLINE vecf resampled(const tensors::Resample& p, idx block, const int* rows, const float* rows_weight,
                         const int* columns, const float* columns_weight) {
  vecf all = Maximum ? splat(-__builtin_inff()) : vecf{};
  for (idx k = 0; k < p.row_taps; ++k) {
    if (rows[k] < 0) continue;
    const float* line = at(p.x, block, rows[k]);
    vecf sum = {};
    for (idx l = 0; l < p.column_taps; ++l) {
      if (columns[l] < 0) continue;
      const vecf v = load(line + columns[l] * L);
      if (Maximum)
        all = ((v > all) | (v != v)) ? v : all;
      else
        sum = fma(splat(columns_weight[l]), v, sum);
    }
    if (!Maximum) all = fma(splat(rows_weight[k]), sum, all);
  }
  return all;
}

template <bool Maximum>
FF_NOINLINE void resample_rows(const tensors::Resample& p, Part part) {
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx y = part.y0; y < part.y1; ++y)
      for (idx x = 0; x < p.y.width; ++x)
        store(at(p.y, block, y, x),
              resampled<Maximum>(p, block, p.rows + y * p.row_taps, p.rows_weight + y * p.row_taps,
                                 p.columns + x * p.column_taps, p.columns_weight + x * p.column_taps));
}

// Two columns for each pixel, as in bilinear sizes: sums over the rows' taps are kept from pixel to pixel, of which
// neighbours share them.
FF_NOINLINE void resample_pairs(const tensors::Resample& p, Part part) {
  for (idx block = part.b0; block < part.b1; ++block)
    for (idx y = part.y0; y < part.y1; ++y) {
      const int* rows = p.rows + y * p.row_taps;
      const float* weights = p.rows_weight + y * p.row_taps;
      const auto column_of = [&](int column) {
        vecf sum = {};
        for (idx k = 0; column >= 0 && k < p.row_taps; ++k)
          if (rows[k] >= 0) sum = fma(splat(weights[k]), load(at(p.x, block, rows[k], column)), sum);
        return sum;
      };
      int left = -1, right = -1;
      vecf left_sum = {}, right_sum = {};
      float* to = at(p.y, block, y);
      for (idx x = 0; x < p.y.width; ++x, to += L) {
        const int* columns = p.columns + 2 * x;
        const float* factors = p.columns_weight + 2 * x;
        if (columns[0] != left) left_sum = columns[0] == right ? right_sum : column_of(columns[0]), left = columns[0];
        if (columns[1] != right) right_sum = column_of(columns[1]), right = columns[1];
        store(to, fma(splat(factors[1]), right_sum, splat(factors[0]) * left_sum));
      }
    }
}

static void resample(const tensors::Resample& p, Part part) {
  if (p.maximum) return resample_rows<true>(p, part);
  p.column_taps == 2 ? resample_pairs(p, part) : resample_rows<false>(p, part);
}

// N rows of the product, one block of its columns.
template <int N>
FF_INLINE void matmul_tile(const float* a, idx a_block, idx inner, const float* b, float* y) {
  vecf sum[N] = {};
  for (idx k = 0; k < inner; ++k) {
    const vecf w = load(b + k * L);
    const float* v = a + k / L * a_block + k % L;
    FF_UNROLL(8)
    for (int i = 0; i < N; ++i) sum[i] = fma(splat(v[i * L]), w, sum[i]);
  }
  FF_UNROLL(8)
  for (int i = 0; i < N; ++i) store(y + i * L, sum[i]);
}

FF_NOINLINE void matmul(const tensors::MatMul& p, Part part) {
  const idx inner = p.a.channels;
  for (idx batch = part.y0; batch < part.y1; ++batch)
    for (idx block = part.b0; block < part.b1; ++block) {
      const float* b = at(p.b, block, p.b.height == 1 ? 0 : batch);
      idx x = 0;
      for (; x + 8 <= p.y.width; x += 8)
        matmul_tile<8>(at(p.a, 0, batch, x), p.a.block, inner, b, at(p.y, block, batch, x));
      for (; x < p.y.width; ++x) matmul_tile<1>(at(p.a, 0, batch, x), p.a.block, inner, b, at(p.y, block, batch, x));
    }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
