// SPDX-License-Identifier: Apache-2.0
// Mean and covariance of the channels of x, and from them the statistics of every linear function of a pixel's
// channels: a few channels squared in work, where measuring the functions themselves takes the whole expansion.
#pragma once
#include "norm/vectors.h"
#include "separable_conv/pointwise_pass.h"

namespace ff {
namespace FF_ISA {
namespace {

// Products are summed in T over blocks of rows, then in float64, around a point near the mean: the average of some
// rows.
template <class T>
struct InputMoments {
  static constexpr idx kChunks = 16, kBlock = 168, kSample = 256, kBytes = 8 << 20;
  idx rows, in, chunks, stride;
  T *ones, *minus;                      // minus: the point, negated
  double *mean, *sums, *products;  // [in], [chunks][stride], [chunks][in][stride], then in the first sums over all

  void take(Arena& a, idx rows_, idx in_) {
    rows = rows_, in = in_, stride = round_up_lanes<double>(in);
    const idx by_bytes = max_idx(1, kBytes / (in * stride * static_cast<idx>(sizeof(double))));
    chunks = max_idx(1, min_idx(min_idx(kChunks, by_bytes), ceil_div(rows, 4 * kBlock)));
    ones = a.take<T>(in), minus = a.take<T>(in), mean = a.take<double>(stride);
    sums = a.take<double>(chunks * stride), products = a.take<double>(chunks * in * stride);
  }

  // mean; products [in][stride]: sums of products of deviations from it.
  void run(const T* x, int threads) const {
    const idx sample = max_idx(1, min_idx(kSample, rows));
    fill_zero(mean, in);
    for (idx r = 0; r < sample && rows; ++r) add_to(mean, x + rows * r / sample * in, in);
    for (idx c = 0; c < in; ++c) ones[c] = T(1), minus[c] = static_cast<T>(-mean[c] / static_cast<double>(sample));
    for (idx c = in; c < round_up_lanes<T>(in); ++c) ones[c] = minus[c] = T(0);
    for_tasks(chunks, threads, [&](idx chunk) { measure(x, chunk); });
    fold_parts(sums, chunks, stride, in), fold_parts(products, chunks, in * stride, in * stride);
    const double count = static_cast<double>(max_idx(rows, 1));
    for (idx c = 0; c < in; ++c) mean[c] = sums[c] / count - static_cast<double>(minus[c]);
    for (idx i = 0; i < in; ++i)
      for (idx j = 0; j < in; ++j) products[i * stride + j] -= sums[i] / count * sums[j];
  }

 private:
  void measure(const T* x, idx chunk) const {
    const idx ld = block_stride<T>(in);
    T *block = nullptr, *part = nullptr, *part_sums = nullptr;
    Arena a(Scratch::task);
    block = a.take<T>(kBlock * ld), part = a.take<T>(in * ld), part_sums = a.take<T>(in);
    double *sum = sums + chunk * stride, *product = products + chunk * in * stride;
    fill_zero(sum, stride), fill_zero(product, in * stride);
    for (idx first = rows * chunk / chunks, end = rows * (chunk + 1) / chunks; first < end; first += kBlock) {
      const idx count = min_idx(kBlock, end - first);
      affine_act_rows<T>(block, ld, x + first * in, in, count, in, ones, minus, Act::none);
      gemm<T, true>(
          {.a = block, .lda = ld, .b = block, .ldb = ld, .c = part, .ldc = ld, .rows = in, .cols = in, .depth = count});
      fill_zero(part_sums, in);
      sums_rows<T>(block, ld, count, in, part_sums);
      add_to(sum, part_sums, in);
      for (idx i = 0; i < in; ++i) add_to(product + i * stride, part + i * ld, in);
    }
  }
};

// Statistics [3][channels] (see NormParams) of weight·x, weight [channels][in], and covariance [channels + 1][in].
template <class T>
FF_INLINE void linear_stats(const InputMoments<T>& m, const T* weight, idx channels, double eps, T* stats,
                            T* covariance, int threads) {
  constexpr idx kGroup = 4;
  const double count = static_cast<double>(max_idx(m.rows, 1));
  for (idx i = 0; i < m.in; ++i) covariance[channels * m.in + i] = static_cast<T>(m.mean[i]);
  for_tasks(ceil_div(channels, kGroup), channels * m.in * m.in < (1 << 18) ? 1 : threads, [&](idx group) {
    const idx first = group * kGroup, size = min_idx(kGroup, channels - first);
    const T* w[kGroup];
    double mean[kGroup] = {}, deviation[kGroup] = {};
    for (idx g = 0; g < kGroup; ++g) w[g] = weight + (first + min_idx(g, size - 1)) * m.in;
    double* products = Arena(Scratch::task).take<double>(kGroup * m.stride);
    norm_kernels<T>().weighted_rows(products, w, m.products, m.in, m.stride);
    for (idx g = 0; g < size; ++g) {
      const double* row = products + g * m.stride;
      for (idx j = 0; j < m.in; ++j) {
        covariance[(first + g) * m.in + j] = static_cast<T>(row[j] / count);
        deviation[g] += row[j] * w[g][j], mean[g] += m.mean[j] * w[g][j];
      }
      const double d = deviation[g] < 0 ? 0 : deviation[g];
      stats[first + g] = static_cast<T>(mean[g]);
      stats[channels + first + g] = static_cast<T>(1 / __builtin_sqrt(d / count + eps));
      stats[2 * channels + first + g] = static_cast<T>(count > 1 ? d / (count - 1) : d);
    }
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
