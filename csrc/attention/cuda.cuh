// SPDX-License-Identifier: Apache-2.0
// Dot-product attention with a streaming softmax (Milakov and Gimelshein 2018; Dao et al. 2022): no matrix of scores in
// memory, backward makes them again from the row statistics. Additive attention: a product with tanh after it, and a
// softmax over the steps. Parameters and what is kept are in the compute type.
#pragma once

#include "attention/tile.cuh"
#include "cuda/gemm.cuh"
#include "cuda/math.cuh"

namespace ff::cuda {

// out (batch, t, e) = softmax(rate·q kᵀ) v and stats [2][batch][t]: the largest score, 1 / sum of exp(score - largest).
// rate = factor·scale; scale may be null.
template <class T>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    attention_fwd(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                  const compute_t<T>* __restrict__ scale, T* __restrict__ out, compute_t<T>* __restrict__ stats,
                  index_t batches, index_t queries, index_t keys, index_t depth, index_t width, double factor) {
  using C = compute_t<T>;
  FF_ATTENTION_TILE(C);
  const AttentionPart part(queries, width);
  const C rate = static_cast<C>(factor) * (scale ? scale[0] : C(1));
  const T* const own = q + (part.batch * queries + part.first) * depth;
  C largest = -infinity<C>(), total = C(0), sums[4] = {};
  for (index_t s0 = 0; s0 < keys; s0 += kOthers) {
    const index_t count = keys - s0 < kOthers ? keys - s0 : kOthers, from = part.batch * keys + s0;
    C scores[2];
    tile.dots(
        part.count, count, depth, [&](index_t r, index_t d) { return widen(own[r * depth + d]); },
        [&](index_t o, index_t d) { return widen(k[(from + o) * depth + d]); }, scores);
#pragma unroll
    for (int i = 0; i < 2; ++i) scores[i] = tile.column() + kRows * i < count ? scores[i] * rate : -infinity<C>();
    const C before = largest, most = row_max(scores[0] > scores[1] || scores[1] != scores[1] ? scores[0] : scores[1]);
    largest = most > largest ? most : largest;
    const C zero = largest == -infinity<C>() ? C(0) : largest;  // while all scores are -inf, exp(-inf - 0) = 0
    C weights[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) weights[i] = exp(scores[i] - zero);
    const C keep = exp(before - zero);
    total = total * keep + row_sum(weights[0] + weights[1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] *= keep;
    tile.gather(
        weights, count, part.column, part.last, [&](index_t o, index_t e) { return widen(v[(from + o) * width + e]); },
        sums);
  }
  if (tile.row() >= part.count) return;
  const index_t row = part.batch * queries + part.first + tile.row();
  const C share = C(1) / total;
  if (block_y() == 0 && tile.column() == 0) stats[row] = largest, stats[batches * queries + row] = share;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const index_t e = part.column + tile.column() + kRows * i;
    if (e < width) out[row * width + e] = narrow<T>(sums[i] * share);
  }
}

// dq, unless null, and, unless null, partial [blocks x] sums of dscore·q kᵀ; delta (batch, t): sum of dout·out.
template <class T>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    attention_bwd_queries(const T* __restrict__ dout, const T* __restrict__ q, const T* __restrict__ k,
                          const T* __restrict__ v, const compute_t<T>* __restrict__ scale,
                          const compute_t<T>* __restrict__ stats, const compute_t<T>* __restrict__ delta,
                          T* __restrict__ dq, compute_t<T>* __restrict__ partial, index_t batches, index_t queries,
                          index_t keys, index_t depth, index_t width, double factor) {
  using C = compute_t<T>;
  FF_ATTENTION_TILE(C);
  const AttentionPart part(queries, depth);
  const C rate = static_cast<C>(factor) * (scale ? scale[0] : C(1));
  const index_t first = part.batch * queries + part.first, row = first + tile.row();
  const bool inside = tile.row() < part.count;
  const C largest = inside ? stats[row] : C(0), share = inside ? stats[batches * queries + row] : C(0);
  const C own_delta = inside ? delta[row] : C(0);
  C sums[4] = {}, scaled = C(0);
  for (index_t s0 = 0; s0 < keys; s0 += kOthers) {
    const index_t count = keys - s0 < kOthers ? keys - s0 : kOthers, from = part.batch * keys + s0;
    C raw[2], grads[2];
    tile.dots(
        part.count, count, depth, [&](index_t r, index_t d) { return widen(q[(first + r) * depth + d]); },
        [&](index_t o, index_t d) { return widen(k[(from + o) * depth + d]); }, raw);
    tile.dots(
        part.count, count, width, [&](index_t r, index_t e) { return widen(dout[(first + r) * width + e]); },
        [&](index_t o, index_t e) { return widen(v[(from + o) * width + e]); }, grads);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool there = inside && tile.column() + kRows * i < count;
      grads[i] = there ? exp(raw[i] * rate - largest) * share * (grads[i] - own_delta) : C(0);
      if (there) scaled += grads[i] * raw[i];
    }
    tile.gather(
        grads, count, part.column, part.last, [&](index_t o, index_t d) { return widen(k[(from + o) * depth + d]); },
        sums);
  }
  if (dq && inside)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const index_t d = part.column + tile.column() + kRows * i;
      if (d < depth) dq[row * depth + d] = narrow<T>(sums[i] * rate);
    }
  if (!partial || block_y() > 0) return;
  scaled = warp_sum(scaled);
  if (lane_rank() == 0) tile_weights[warp_rank()] = scaled;
  sync();
  if (thread_rank() > 0) return;
  C all = C(0);
  for (int warp = 0; warp < kAttentionThreads / 32; ++warp) all += tile_weights[warp];
  partial[block_x()] = all;
}

// dk and dv, either null: the same with keys for rows and queries for others.
template <class T>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    attention_bwd_keys(const T* __restrict__ dout, const T* __restrict__ q, const T* __restrict__ k,
                       const T* __restrict__ v, const compute_t<T>* __restrict__ scale,
                       const compute_t<T>* __restrict__ stats, const compute_t<T>* __restrict__ delta,
                       T* __restrict__ dk, T* __restrict__ dv, index_t batches, index_t queries, index_t keys,
                       index_t depth, index_t width, double factor) {
  using C = compute_t<T>;
  FF_ATTENTION_TILE(C);
  const AttentionPart part(keys, 0);
  const C rate = static_cast<C>(factor) * (scale ? scale[0] : C(1));
  const index_t first = part.batch * keys + part.first, row = first + tile.row();
  const bool inside = tile.row() < part.count;
  C for_k[4] = {}, for_v[4] = {};
  for (index_t t0 = 0; t0 < queries; t0 += kOthers) {
    const index_t count = queries - t0 < kOthers ? queries - t0 : kOthers, from = part.batch * queries + t0;
    C weights[2], grads[2];
    tile.dots(
        part.count, count, depth, [&](index_t r, index_t d) { return widen(k[(first + r) * depth + d]); },
        [&](index_t o, index_t d) { return widen(q[(from + o) * depth + d]); }, weights);
    tile.dots(
        part.count, count, width, [&](index_t r, index_t e) { return widen(v[(first + r) * width + e]); },
        [&](index_t o, index_t e) { return widen(dout[(from + o) * width + e]); }, grads);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const index_t o = tile.column() + kRows * i, query = from + o;
      const bool there = inside && o < count;
      weights[i] = there ? exp(weights[i] * rate - stats[query]) * stats[batches * queries + query] : C(0);
      grads[i] = there ? weights[i] * (grads[i] - delta[query]) : C(0);
    }
    tile.gather(
        grads, count, part.column, depth, [&](index_t o, index_t d) { return widen(q[(from + o) * depth + d]); },
        for_k);
    tile.gather(
        weights, count, part.column, width, [&](index_t o, index_t e) { return widen(dout[(from + o) * width + e]); },
        for_v);
  }
  if (!inside) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const index_t at = part.column + tile.column() + kRows * i;
    if (dk && at < depth) dk[row * depth + at] = narrow<T>(for_k[i] * rate);
    if (dv && at < width) dv[row * width + at] = narrow<T>(for_v[i]);
  }
}

// [x h], rows side by side.
template <class T>
struct SideBySide {
  const T* x;
  const T* h;
  index_t width;

  __device__ __forceinline__ compute_t<T> operator()(index_t row, index_t column) const {
    return widen(column < width ? x[row * width + column] : h[row * width + column - width]);
  }
};

// u (rows, units) = tanh(weight (units, 2·width)·[x h] + bias).
template <class T>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>)
    additive_hidden(const T* __restrict__ x, const T* __restrict__ h, const compute_t<T>* __restrict__ weight,
                    const compute_t<T>* __restrict__ bias, compute_t<T>* __restrict__ u, index_t rows, index_t width,
                    index_t units) {
  using C = compute_t<T>;
  const SideBySide<T> both{x, h, width};
  matmul_tile<Along::k, Along::k, C>(
      block_x() * kTile, block_y() * kTile, rows, units, 0, 2 * width, both,
      [&](index_t k, index_t n) { return weight[n * 2 * width + k]; },
      [&](C(&sums)[kPerThread][kPerThread], index_t m, index_t n) {
#pragma unroll 1  // the rows move up in turn: unrolled, sixteen tanh would not fit into the registers
        for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
          for (int j = 0; j < kPerThread; ++j) {
            if (m + i < rows && n + j < units) u[(m + i) * units + n + j] = tanh(sums[0][j] + bias[n + j]);
#pragma unroll
            for (int r = 1; r < kPerThread; ++r) sums[r - 1][j] = sums[r][j];
          }
        }
      });
}

// weights (batch, steps) = softmax over the steps of u·v + v_bias, and out (batch, width) = their sum of x; a block a
// batch element.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    additive_fwd(const compute_t<T>* __restrict__ u, const T* __restrict__ x, const compute_t<T>* __restrict__ v,
                 const compute_t<T>* __restrict__ v_bias, compute_t<T>* weights, T* __restrict__ out, index_t steps,
                 index_t width, index_t units) {
  using C = compute_t<T>;
  const index_t first = block_x() * steps;
  C* const own = weights + first;
  for (index_t t = warp_rank(); t < steps; t += kThreads / 32) {
    C sum = C(0);
    for (index_t a = lane_rank(); a < units; a += 32) sum += u[(first + t) * units + a] * v[a];
    sum = warp_sum(sum);
    if (lane_rank() == 0) own[t] = sum + v_bias[0];
  }
  sync();
  C most = -infinity<C>(), total = C(0);
  for (index_t t = lane_rank(); t < steps; t += 32) most = own[t] > most ? own[t] : most;
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const C other = shuffle_xor(most, mask);
    most = other > most ? other : most;
  }
  for (index_t t = lane_rank(); t < steps; t += 32) total += exp(own[t] - most);
  total = warp_sum(total);
  sync();
  for (index_t t = thread_rank(); t < steps; t += kThreads) own[t] = exp(own[t] - most) / total;
  sync();
  for (index_t d = thread_rank(); d < width; d += kThreads) {
    C sum = C(0);
    for (index_t t = 0; t < steps; ++t) sum += own[t] * widen(x[(first + t) * width + d]);
    out[block_x() * width + d] = narrow<T>(sum);
  }
}

// dz (batch, steps, units): gradient of the hidden layer before tanh; partial [batch][units + 1]: of v and v_bias. de
// (batch, steps) is scratch.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    additive_bwd(const T* __restrict__ dout, const T* __restrict__ x, const compute_t<T>* __restrict__ u,
                 const compute_t<T>* __restrict__ v, const compute_t<T>* __restrict__ weights, compute_t<T>* de,
                 compute_t<T>* __restrict__ dz, compute_t<T>* __restrict__ partial, index_t steps, index_t width,
                 index_t units) {
  using C = compute_t<T>;
  const index_t first = block_x() * steps;
  C* const own = de + first;
  for (index_t t = warp_rank(); t < steps; t += kThreads / 32) {
    C sum = C(0);
    for (index_t d = lane_rank(); d < width; d += 32)
      sum += widen(x[(first + t) * width + d]) * widen(dout[block_x() * width + d]);
    sum = warp_sum(sum);
    if (lane_rank() == 0) own[t] = sum;
  }
  sync();
  C mean = C(0);
  for (index_t t = lane_rank(); t < steps; t += 32) mean += weights[first + t] * own[t];
  mean = warp_sum(mean);
  sync();
  for (index_t t = thread_rank(); t < steps; t += kThreads) own[t] = weights[first + t] * (own[t] - mean);
  sync();
  for (index_t a = thread_rank(); a < units; a += kThreads) {
    C sum = C(0);
    for (index_t t = 0; t < steps; ++t) {
      const C value = u[(first + t) * units + a];
      sum += own[t] * value;
      dz[(first + t) * units + a] = own[t] * v[a] * (C(1) - value * value);
    }
    partial[block_x() * (units + 1) + a] = sum;
  }
  if (thread_rank() > 0) return;
  C sum = C(0);
  for (index_t t = 0; t < steps; ++t) sum += own[t];
  partial[block_x() * (units + 1) + units] = sum;
}

// dx = dz·weight's left half + weights·dout and dh = dz·its right half, either null.
template <class T>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>)
    additive_bwd_input(const compute_t<T>* __restrict__ dz, const compute_t<T>* __restrict__ weight,
                       const compute_t<T>* __restrict__ weights, const T* __restrict__ dout, T* __restrict__ dx,
                       T* __restrict__ dh, index_t rows, index_t steps, index_t width, index_t units) {
  using C = compute_t<T>;
  matmul_tile<Along::k, Along::other, C>(
      block_x() * kTile, block_y() * kTile, rows, 2 * width, 0, units,
      [&](index_t m, index_t k) { return dz[m * units + k]; },
      [&](index_t k, index_t n) { return weight[k * 2 * width + n]; },
      [&](const C(&sums)[kPerThread][kPerThread], index_t m, index_t n) {
#pragma unroll
        for (int i = 0; i < kPerThread; ++i)
#pragma unroll
          for (int j = 0; j < kPerThread; ++j) {
            const index_t row = m + i, column = n + j;
            if (row >= rows || column >= 2 * width) continue;
            if (column >= width) {
              if (dh) dh[row * width + column - width] = narrow<T>(sums[i][j]);
            } else if (dx) {
              const C direct = weights[row] * widen(dout[row / steps * width + column]);
              dx[row * width + column] = narrow<T>(sums[i][j] + direct);
            }
          }
      });
}

// partial [parts][units][2·width]: dzᵀ [x h] over each part of the rows.
template <class T>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks<T>)
    additive_bwd_weight(const compute_t<T>* __restrict__ dz, const T* __restrict__ x, const T* __restrict__ h,
                        compute_t<T>* __restrict__ partial, index_t rows, index_t rows_per_part, index_t width,
                        index_t units) {
  using C = compute_t<T>;
  const SideBySide<T> both{x, h, width};
  const index_t first = block_z() * rows_per_part, last = first + rows_per_part < rows ? first + rows_per_part : rows;
  C* const target = partial + block_z() * units * 2 * width;
  matmul_tile<Along::other, Along::other, C>(
      block_x() * kTile, block_y() * kTile, units, 2 * width, first, last,
      [&](index_t m, index_t k) { return dz[k * units + m]; }, both,
      [&](const C(&sums)[kPerThread][kPerThread], index_t m, index_t n) {
#pragma unroll
        for (int i = 0; i < kPerThread; ++i)
#pragma unroll
          for (int j = 0; j < kPerThread; ++j)
            if (m + i < units && n + j < 2 * width) target[(m + i) * 2 * width + n + j] = sums[i][j];
      });
}

}  // namespace ff::cuda
