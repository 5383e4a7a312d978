// SPDX-License-Identifier: Apache-2.0
// Matrix products out of functors: C(m, n) = sum over k of a(m, k)·b(k, n), so that an operand can be an activation with
// its norm applied, a convolution's window, or a transposed gradient. A block of 256 threads makes a tile of 64 x 64 from
// slices of 16 k in shared memory, each thread 4 x 4 of it: 16 multiply-adds for 8 reads of shared memory.
#pragma once

#include "cuda/device.cuh"

namespace ff::cuda {

constexpr int kTile = 64;        // rows and columns of a block's tile
constexpr int kSlice = 16;       // k of one stage
constexpr int kPerThread = 4;    // rows and columns of a thread's part
constexpr int kGemmThreads = 256;
constexpr int kSide = kTile / kPerThread;

// How an operand lies in memory: whether its neighbours are those along k, or those along m (or n).
enum class Along { k, other };

// Rows m0..m0 + 63 and columns n0..n0 + 63 over k in [k0, k1): finish(sums, m, n) gets the thread's 4 x 4 part, whose
// first element is (m, n). Operands are asked only for elements inside [0, rows), [0, columns), [k0, k1).
template <Along kA, Along kB, class C, class A, class B, class Finish>
__device__ __forceinline__ void matmul_tile(index_t m0, index_t n0, index_t rows, index_t columns, index_t k0, index_t k1,
                                            const A& a, const B& b, const Finish& finish) {
  FF_SHARED(C, a_slice, kSlice * (kTile + 4));  // rows of 68: a column's lanes fall on different banks
  FF_SHARED(C, b_slice, kSlice * (kTile + 4));
  constexpr int kRow = kTile + 4;
  const int t = thread_rank(), row = t / kSide * kPerThread, column = t % kSide * kPerThread;
  C sums[kPerThread][kPerThread] = {};
  for (index_t k = k0; k < k1; k += kSlice) {
#pragma unroll
    for (int i = 0; i < kTile * kSlice / kGemmThreads; ++i) {
      const int at = t + i * kGemmThreads;
      const int ak = kA == Along::k ? at % kSlice : at / kTile, am = kA == Along::k ? at / kSlice : at % kTile;
      const int bk = kB == Along::k ? at % kSlice : at / kTile, bn = kB == Along::k ? at / kSlice : at % kTile;
      a_slice[ak * kRow + am] = k + ak < k1 && m0 + am < rows ? a(m0 + am, k + ak) : C(0);
      b_slice[bk * kRow + bn] = k + bk < k1 && n0 + bn < columns ? b(k + bk, n0 + bn) : C(0);
    }
    sync();
#pragma unroll
    for (int s = 0; s < kSlice; ++s) {
      C left[kPerThread], right[kPerThread];
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        left[i] = a_slice[s * kRow + row + i];
        right[i] = b_slice[s * kRow + column + i];
      }
#pragma unroll
      for (int i = 0; i < kPerThread; ++i)
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) sums[i][j] += left[i] * right[j];
    }
    sync();
  }
  finish(sums, m0 + row, n0 + column);
}

// partial [tiles of rows][2][columns]: mean and sum of squared deviations of the tile's rows, for each column: the
// statistics of a product gathered where it is made. Called by all threads of the block with their parts.
template <class C>
__device__ __forceinline__ void tile_moments(const C (&values)[kPerThread][kPerThread], index_t m, index_t n,
                                             index_t rows, index_t columns, C* __restrict__ partial) {
  FF_SHARED(C, sums, kSide * kTile);
  const int group = thread_rank() / kSide, column = thread_rank() % kSide * kPerThread;
  const index_t first = block_x() * kTile;
  const C count = static_cast<C>(rows - first < kTile ? rows - first : kTile);
  C mean[kPerThread];
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {  // the mean, then the deviations from it
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      C sum = C(0);
#pragma unroll
      for (int i = 0; i < kPerThread; ++i)
        if (m + i < rows) {
          const C value = pass == 0 ? values[i][j] : values[i][j] - mean[j];
          sum += pass == 0 ? value : value * value;
        }
      sums[group * kTile + column + j] = sum;
    }
    sync();
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      C total = C(0);
      for (int g = 0; g < kSide; ++g) total += sums[g * kTile + column + j];
      if (pass == 0) mean[j] = total / count;
      if (group == 0 && n + j < columns)
        partial[(2 * block_x() + pass) * columns + n + j] = pass == 0 ? mean[j] : total;
    }
    sync();
  }
}

}  // namespace ff::cuda
