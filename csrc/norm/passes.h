// SPDX-License-Identifier: Apache-2.0
// Passes of a normalisation over all rows: apply it, and the sums that its backward needs.
#pragma once
#include "norm/vectors.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr idx kSumChunks = 16;  // partial sums: enough for many cores, few enough that merging costs nothing

// Rows as the row primitives see them: few channels that divide a vector are taken `times` rows at once, so that they
// fill it. Per-channel vectors are then repeated as often, and every partial result counts as `times` of them.
struct Wide {
  idx rows, channels, times;
};

template <class T>
FF_INLINE Wide widened(idx rows, idx channels) {
  const idx L = lane_count<T>();
  const idx times = channels > 0 && L % channels == 0 ? L / channels : 1;
  return rows % times ? Wide{rows, channels, 1} : Wide{rows / times, channels * times, times};
}

// Rows of `columns` values that fit in 64 KiB.
template <class T>
FF_INLINE idx stream_rows(idx columns) {
  return max_idx(1, (64 << 10) / (columns * static_cast<idx>(sizeof(T))));
}

// dst = act(src·scale + shift); n without vectors: act(src).
template <class T>
FF_INLINE void affine_act_pass(T* dst, const T* src, const Wide& v, const NormVectors<T>& n, Act act, int threads) {
  const idx block = stream_rows<T>(v.channels);
  const bool streamed = streamable(dst, v.rows * v.channels, v.channels);
  for_tasks(ceil_div(v.rows, block), threads, [&](idx b) {
    const idx first = b * block * v.channels;
    affine_act_rows<T>(dst + first, v.channels, src + first, v.channels, min_idx(block, v.rows - b * block), v.channels,
                       n.scale, n.shift, act, streamed);
    if (streamed) stream_fence();
  });
}

template <class T>
struct NormSums {
  const T *dz, *y;               // [rows][channels]
  Wide v;
  NormAct<T> norm;
  idx chunks, stride;
  double *sum_g, *sum_gx;        // [chunks][stride]
  int threads;
};

// Sums of g = dz·act'(z) and g·(y - mean) over chunks of rows.
template <class T>
FF_INLINE void sums_pass(const NormSums<T>& p) {
  const idx channels = p.v.channels, block = stream_rows<T>(2 * channels), blocks = ceil_div(p.v.rows, block);
  for_tasks(p.chunks, p.threads, [&](idx chunk) {
    T *sums = nullptr, *sums_x = nullptr;
    Arena a(Scratch::task);
    sums = a.take<T>(channels), sums_x = a.take<T>(channels);
    double *sum_g = p.sum_g + chunk * p.stride, *sum_gx = p.sum_gx + chunk * p.stride;
    fill_zero(sum_g, p.stride), fill_zero(sum_gx, p.stride);
    for (idx b = blocks * chunk / p.chunks; b < blocks * (chunk + 1) / p.chunks; ++b) {
      const idx first = b * block, rows = min_idx(block, p.v.rows - first);
      fill_zero(sums, channels), fill_zero(sums_x, channels);
      act_grad_rows<T>(nullptr, 0, p.dz + first * channels, channels, p.y + first * channels, channels, rows, channels,
                       p.norm, sums, sums_x);
      add_to(sum_g, sums, channels), add_to(sum_gx, sums_x, channels);
    }
  });
}

// The vectors of a normalisation's backward over `rows` rows, from a pass for its sums.
template <class T>
struct NormBackward {
  NormVectors<T> n;
  NormGradVectors<T> grad;
  double* sums = nullptr;
  const NormGrad<T>* form = nullptr;  // null without a normalisation

  void take(Arena& a, const NormParams& norm, idx channels, const Wide& v) {
    n.take(a, norm, channels), grad.take(a, norm, channels);
    if (norm.weight) sums = a.take<double>(2 * kSumChunks * v.channels);
  }
  NormAct<T> norm_act(Act act) const { return {n.scale, n.shift, n.mean, act}; }
  // `count`: of the values a channel, where dz and y hold only those with a gradient.
  void run(const NormParams& norm, idx channels, const Wide& v, const T* dz, const T* y, Act act, bool batch_stats,
           int threads, idx count = 0) {
    if (!norm.weight) return;
    n.fill(norm, channels, v.times);
    double* sums_x = sums + kSumChunks * v.channels;
    sums_pass<T>({dz, y, v, norm_act(act), kSumChunks, v.channels, sums, sums_x, threads});
    form = grad.fill(norm, channels, sums, sums_x, kSumChunks * v.times, channels, count ? count : v.rows * v.times,
                     batch_stats, v.times);
  }
};

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
