// SPDX-License-Identifier: Apache-2.0
// Matrix products out of functors: C(m, n) = sum over k of a(m, k)·b(k, n), so that an operand can be an activation
// with its norm applied, a convolution's window, or a transposed gradient. A block of 256 threads makes a tile of 64 x
// 64 from slices in shared memory: 16-bit operands, and float where torch allows tf32, by tensor cores, a warp 16 x 32
// of it; float and double by multiply-adds, a thread 4 x 4 of it, 16 for 8 reads of shared memory.
#pragma once

#include "cuda/columns.cuh"
#include "cuda/mma.cuh"
#include "cuda/normalise.cuh"

namespace ff::cuda {

constexpr int kTile = 64;        // rows and columns of a block's tile
constexpr int kSlice = 16;       // k of one stage
constexpr int kPerThread = 4;    // rows and columns of a thread's part
constexpr int kGemmThreads = 256;
constexpr int kSide = kTile / kPerThread;
template <class T>
constexpr int kGemmBlocks =
    sizeof(T) == 8 ? 1 : 2;  // blocks that a multiprocessor holds at least: a bound on registers

// How an operand lies in memory: whether its neighbours are those along k, or those along m (or n).
enum class Along { k, other };

// Nothing to do before a stage.
struct NoStage {
  __device__ __forceinline__ void operator()(index_t) const {}
};

// By multiply-adds in C; arguments as matmul_tile's.
template <Along kA, Along kB, class C, class A, class B, class Finish, class Stage>
__device__ __forceinline__ void matmul_sums(index_t m0, index_t n0, index_t rows, index_t columns, index_t k0,
                                            index_t k1, const A& a, const B& b, const Finish& finish,
                                            const Stage& stage) {
  FF_SHARED(C, a_slice, kSlice * (kTile + 4));  // rows of 68: a column's lanes fall on different banks
  FF_SHARED(C, b_slice, kSlice * (kTile + 4));
  constexpr int kRow = kTile + 4;
  const int t = thread_rank(), row = t / kSide * kPerThread, column = t % kSide * kPerThread;
  C sums[kPerThread][kPerThread] = {};
  for (index_t k = k0; k < k1; k += kSlice) {
    stage(k);
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

constexpr int kWords = 16;                  // words along k of one stage of tensor cores: two steps of eight
constexpr int kWordRow = kWords + 4;        // a fragment's rows fall on different banks
constexpr int kSumRow = kTile + 4;

// By tensor cores: operands are rounded to S as they are put into shared memory; the sums go through it, too, so that
// finish gets the same parts as from multiply-adds.
template <Along kA, Along kB, class S, class A, class B, class Finish, class Stage>
__device__ __forceinline__ void matmul_words(index_t m0, index_t n0, index_t rows, index_t columns, index_t k0,
                                             index_t k1, const A& a, const B& b, const Finish& finish,
                                             const Stage& stage) {
  FF_SHARED(unsigned, a_words, kTile* kWordRow);
  FF_SHARED(unsigned, b_words, kTile* kWordRow);
  FF_SHARED(float, all_sums, kTile* kSumRow);
  const int t = thread_rank(), group = mma_group(), quad = mma_quad();
  const int row = warp_rank() % 4 * 16, column = warp_rank() / 4 * 32;
  float sums[4][4] = {};
  for (index_t k = k0; k < k1; k += kWords * kPerWord<S>) {
    stage(k);
#pragma unroll
    for (int i = 0; i < kTile * kWords / kGemmThreads; ++i) {
      const int at = t + i * kGemmThreads;
      const int aw = kA == Along::k ? at % kWords : at / kTile, am = kA == Along::k ? at / kWords : at % kTile;
      const int bw = kB == Along::k ? at % kWords : at / kTile, bn = kB == Along::k ? at / kWords : at % kTile;
      float left[2] = {}, right[2] = {};
#pragma unroll
      for (int j = 0; j < kPerWord<S>; ++j) {
        const index_t ak = k + aw * kPerWord<S> + j, bk = k + bw * kPerWord<S> + j;
        if (ak < k1 && m0 + am < rows) left[j] = a(m0 + am, ak);
        if (bk < k1 && n0 + bn < columns) right[j] = b(bk, n0 + bn);
      }
      a_words[am * kWordRow + aw] = mma_word<S>(left[0], left[1]);
      b_words[bn * kWordRow + bw] = mma_word<S>(right[0], right[1]);
    }
    sync();
#pragma unroll
    for (int step = 0; step < kWords; step += 8) {
      const int word = step + quad;
      const unsigned left[4] = {a_words[(row + group) * kWordRow + word], a_words[(row + group + 8) * kWordRow + word],
                                a_words[(row + group) * kWordRow + word + 4],
                                a_words[(row + group + 8) * kWordRow + word + 4]};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int n = column + 8 * j + group;
        const unsigned right[2] = {b_words[n * kWordRow + word], b_words[n * kWordRow + word + 4]};
        mma<S>(sums[j], left, right);
      }
    }
    sync();
  }
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      all_sums[(row + group + i / 2 * 8) * kSumRow + column + 8 * j + 2 * quad + i % 2] = sums[j][i];
  sync();
  const int own_row = t / kSide * kPerThread, own_column = t % kSide * kPerThread;
  float part[kPerThread][kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i)
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) part[i][j] = all_sums[(own_row + i) * kSumRow + own_column + j];
  finish(part, m0 + own_row, n0 + own_column);
}

// Rows m0..m0 + 63 and columns n0..n0 + 63 over k in [k0, k1), operands rounded to S: finish(sums, m, n) gets the
// thread's 4 x 4 part, whose first element is (m, n). Operands are asked only for elements inside [0, rows), [0,
// columns), [k0, k1), after all threads have called stage(k) for the k of kStage<S> that begin at k, none of an earlier
// stage being asked for.
template <Along kA, Along kB, class S, class A, class B, class Finish, class Stage = NoStage>
__device__ __forceinline__ void matmul_tile(index_t m0, index_t n0, index_t rows, index_t columns, index_t k0,
                                            index_t k1, const A& a, const B& b, const Finish& finish,
                                            const Stage& stage = {}) {
  if constexpr (kTensorCores && kPerWord<S> > 0) {
    matmul_words<kA, kB, S>(m0, n0, rows, columns, k0, k1, a, b, finish, stage);
  } else {
    matmul_sums<kA, kB, compute_t<S>>(m0, n0, rows, columns, k0, k1, a, b, finish, stage);
  }
}

// k of one stage of a product in S.
template <class S>
constexpr int kStage = kTensorCores && kPerWord<S> > 0 ? kWords * kPerWord<S> : kSlice;

// Count, mean and m2 (`MergeMoments`) of the rows of the tiles that a block makes, for each of a thread's columns: the
// statistics of a product gathered where it is made. All threads of a column hold the same.
template <class C>
struct TileMoments {
  C columns[kPerThread][3] = {};

  // Adds a tile from row `first` on. Called by all threads of the block with their parts.
  __device__ __forceinline__ void add(const C (&values)[kPerThread][kPerThread], index_t first, index_t m,
                                      index_t rows) {
    FF_SHARED(C, sums, kSide * kTile);
    const int group = thread_rank() / kSide, column = thread_rank() % kSide * kPerThread;
    C tile[kPerThread][3];
#pragma unroll
    for (int pass = 1; pass < 3; ++pass) {  // the mean, then the deviations from it
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        C sum = C(0);
#pragma unroll
        for (int i = 0; i < kPerThread; ++i)
          if (m + i < rows) {
            const C value = pass == 1 ? values[i][j] : values[i][j] - tile[j][1];
            sum += pass == 1 ? value : value * value;
          }
        sums[group * kTile + column + j] = sum;
      }
      sync();
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        C total = C(0);
        for (int g = 0; g < kSide; ++g) total += sums[g * kTile + column + j];
        tile[j][0] = static_cast<C>(rows - first < kTile ? rows - first : kTile);
        tile[j][pass] = pass == 1 ? total / tile[j][0] : total;
      }
      sync();
    }
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) MergeMoments()(columns[j], tile[j]);
  }

  // Hands them over as the block's part; the last block of the same columns, from column n0 on, finishes.
  __device__ __forceinline__ void finish(const Gathered<C>& out, index_t n0) const {
    FF_SHARED(double, states, kGemmThreads);
    const index_t n = n0 + thread_rank() % kSide * kPerThread;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j)
      if (thread_rank() < kSide && n + j < out.channels) out.put(block_x(), n + j, columns[j]);
    if (!last_block(out.tickets + block_y(), blocks_x())) return;
    for (int half = 0; half < kTile; half += kColumnLanes)
      out.template finish<kGemmThreads>(blocks_x(), n0 + half, states);
  }
};

// The elements of a thread's part that lie inside: body(row, column, element).
template <class Part, class Body>
__device__ __forceinline__ void for_part(Part& sums, index_t m, index_t n, index_t rows, index_t columns,
                                         const Body& body) {
#pragma unroll
  for (int i = 0; i < kPerThread; ++i)
#pragma unroll
    for (int j = 0; j < kPerThread; ++j)
      if (m + i < rows && n + j < columns) body(m + i, n + j, sums[i][j]);
}

// Stores a thread's part into target (rows, columns).
template <class T, class C>
__device__ __forceinline__ void store_part(const C (&sums)[kPerThread][kPerThread], index_t m, index_t n, index_t rows,
                                           index_t columns, T* __restrict__ target) {
  for_part(sums, m, n, rows, columns,
           [&](index_t row, index_t column, C sum) { target[row * columns + column] = narrow<T>(sum); });
}

// Where a product goes: y (rows, columns), with the bias, unless null, added, and a norm and an activation after it;
// the statistics of what is before these, where asked for.
template <class T>
struct Output {
  using C = compute_t<T>;
  T* y;
  const C* bias;
  NormOnLoad<C> after;
  Gathered<C> gathered;

  __device__ __forceinline__ void store(C (&sums)[kPerThread][kPerThread], index_t m, index_t n, index_t rows) const {
    if (bias)
      for_part(sums, m, n, rows, gathered.channels, [&](index_t, index_t column, C& sum) { sum += bias[column]; });
    if (after.none()) return store_part(sums, m, n, rows, gathered.channels, y);
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const ChannelNorm<C> norm = after.of(n + j);
#pragma unroll
      for (int i = 0; i < kPerThread; ++i)
        if (m + i < rows && n + j < gathered.channels)
          y[(m + i) * gathered.channels + n + j] = narrow<T>(norm(sums[i][j]));
    }
  }
};

// All tiles of rows of a product, in turn by the blocks of one column of tiles: a(m, k) times b(k, n) into `out`.
template <Along kA, Along kB, class S, class T, class A, class B>
__device__ __forceinline__ void matmul_rows(index_t rows, index_t inner, const A& a, const B& b, const Output<T>& out) {
  using C = compute_t<T>;
  const index_t n0 = block_y() * kTile;
  TileMoments<C> moments;
  for (index_t first = block_x() * kTile; first < rows; first += blocks_x() * kTile) {
    // Bias and norms of the columns would be read before the loop, and their 16 registers spill on sm_80.
    const index_t column = opaque(n0);
    matmul_tile<kA, kB, S>(first, column, rows, out.gathered.channels, 0, inner, a, b,
                           [&](C(&sums)[kPerThread][kPerThread], index_t m, index_t n) {
                             out.store(sums, m, n, rows);
                             if (out.gathered.partial) moments.add(sums, first, m, rows);
                           });
  }
  if (out.gathered.partial) moments.finish(out.gathered, n0);
}

}  // namespace ff::cuda
