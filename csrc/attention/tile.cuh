// SPDX-License-Identifier: Apache-2.0
// What dot-product attention is made of, forward and backward: the dots of a block's rows with others, a tile at a
// time, what the rows gather from them, and reductions over a row's threads.
#pragma once

#include "cuda/math.cuh"

namespace ff::cuda {

// A block of 16 x 16 threads makes, for 16 rows (of queries, or of keys) and 32 others at a time, the rows' dots with
// the others and what the rows gather from them, 64 columns of it.
constexpr int kRows = 16;
constexpr int kOthers = 32;
constexpr int kDepth = 32;
constexpr int kGathered = 64;
constexpr int kAttentionThreads = 256;
constexpr int kPad = kDepth + 1;  // a row's length in shared memory: a column's elements lie in different banks

template <class C>
struct AttentionTile {
  Shared<C> rows, others, weights, values;

  static __device__ __forceinline__ int row() { return thread_rank() / kRows; }
  static __device__ __forceinline__ int column() { return thread_rank() % kRows; }

  // dots[i]: of this thread's row with others column() + 16·i, by a(row, d) and b(other, d), d < depth.
  template <class A, class B>
  __device__ __forceinline__ void dots(index_t row_count, index_t other_count, index_t depth, const A& a, const B& b,
                                       C (&sums)[2]) const {
    sums[0] = sums[1] = C(0);
    for (index_t d0 = 0; d0 < depth; d0 += kDepth) {
#pragma unroll
      for (int i = 0; i < kOthers * kDepth / kAttentionThreads; ++i) {
        const int at = thread_rank() + i * kAttentionThreads, r = at / kDepth, d = at % kDepth;
        if (r < kRows) rows[r * kPad + d] = r < row_count && d0 + d < depth ? a(r, d0 + d) : C(0);
        others[r * kPad + d] = r < other_count && d0 + d < depth ? b(r, d0 + d) : C(0);
      }
      sync();
#pragma unroll 8
      for (int d = 0; d < kDepth; ++d) {
        const C own = rows[row() * kPad + d];
        sums[0] += own * others[column() * kPad + d];
        sums[1] += own * others[(column() + kRows) * kPad + d];
      }
      sync();
    }
  }

  // sums[i] += over the others of the row's weight, of which this thread has two as in dots, times x(other, column),
  // for columns first + column() + 16·i below last.
  template <class X>
  __device__ __forceinline__ void gather(const C (&own)[2], index_t other_count, index_t first, index_t last,
                                         const X& x, C (&sums)[4]) const {
    weights[row() * kPad + column()] = own[0];
    weights[row() * kPad + column() + kRows] = own[1];
#pragma unroll
    for (int i = 0; i < kOthers * kGathered / kAttentionThreads; ++i) {
      const int at = thread_rank() + i * kAttentionThreads, o = at / kGathered, e = at % kGathered;
      values[at] = o < other_count && first + e < last ? x(o, first + e) : C(0);
    }
    sync();
#pragma unroll 8
    for (int o = 0; o < kOthers; ++o) {
      const C weight = weights[row() * kPad + o];
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] += weight * values[o * kGathered + column() + kRows * i];
    }
    sync();
  }
};

#define FF_ATTENTION_TILE(C)                     \
  FF_SHARED(C, tile_rows, kRows* kPad);          \
  FF_SHARED(C, tile_others, kOthers* kPad);      \
  FF_SHARED(C, tile_weights, kRows* kPad);       \
  FF_SHARED(C, tile_values, kOthers* kGathered); \
  const AttentionTile<C> tile { tile_rows, tile_others, tile_weights, tile_values }

// Reductions over a row's 16 threads.
template <class C>
__device__ __forceinline__ C row_max(C value) {
#pragma unroll
  for (int mask = kRows / 2; mask > 0; mask /= 2) {
    const C other = shuffle_xor(value, mask);
    value = other > value ? other : value;
  }
  return value;
}
template <class C>
__device__ __forceinline__ C row_sum(C value) {
#pragma unroll
  for (int mask = kRows / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// What a block works on: its rows of one batch element, and the columns that it gathers.
struct AttentionPart {
  index_t batch, first, count, column, last;

  __device__ __forceinline__ AttentionPart(index_t rows, index_t columns) {
    const Split at = split(block_x(), (rows + kRows - 1) / kRows);
    batch = at.whole;
    first = at.rest * kRows;
    count = rows - first < kRows ? rows - first : kRows;
    column = block_y() * kGathered;
    last = columns;
  }
};

}  // namespace ff::cuda
