// SPDX-License-Identifier: Apache-2.0
// A normalisation between two ops, left by the first to the second: y is written once and never read to be normalised
// alone.
//   second, forward   z = act((y - mean)·invstd·weight + bias) while y is loaded
//   second, backward  g = dz·act'; y gets g·scale, scale = weight·invstd, and beside it d_mean = -scale·sum(g),
//                     d_invstd = weight·sum(g·(y - mean)), d_weight = invstd·sum(g·(y - mean)), d_bias = sum(g)
//   first, backward   dy = that + d_mean/n - d_invstd·invstd³·(y - mean)/n (+ 2·d_var·(y - mean)/(n - 1)): affine in
//   both
#pragma once
#include "norm/vectors.h"

namespace ff {
namespace FF_ISA {
namespace {

// The second op's side.
template <class T>
struct LinkedInput {
  NormVectors<T> n;
  Act act = Act::none;
  double *sum_g = nullptr, *sum_gx = nullptr;  // [parts][stride]; backward
  idx stride = 0;

  explicit operator bool() const { return n.scale != nullptr; }
  NormAct<T> norm_act() const { return {n.scale, n.shift, n.mean, act}; }

  // `parts`: partial sums of the gradients; 0 in forward.
  void take(Arena& a, const LinkedInputParams& p, idx channels, idx parts = 0) {
    if (!p.weight) return;
    n.take(a, {p.weight, p.bias, nullptr, nullptr, 0, nullptr, nullptr, nullptr}, channels);
    stride = round_up_lanes<T>(channels), act = p.act;
    if (parts) sum_g = a.take<double>(parts * stride), sum_gx = a.take<double>(parts * stride);
  }
  void fill(const LinkedInputParams& p, idx channels) {
    if (!p.weight) return;
    norm_vectors<T>(static_cast<const T*>(p.weight), static_cast<const T*>(p.bias), static_cast<const T*>(p.stats),
                    channels, n.scale, n.shift, n.mean);
  }
  void zero(idx part) const {
    if (*this) fill_zero(sum_g + part * stride, stride), fill_zero(sum_gx + part * stride, stride);
  }
  // Rows of z, dense.
  void apply(T* z, const T* x, idx rows, idx channels) const {
    affine_act_rows<T>(z, channels, x, channels, rows, channels, n.scale, n.shift, act);
  }
  // Rows of dx from those of dz, dense, and their part of the sums; `room` is 2·stride.
  void gradient(T* dx, const T* dz, const T* x, idx rows, idx channels, idx part, T* room, bool streamed) const {
    fill_zero(room, 2 * stride);
    act_grad_rows<T>(dx, channels, dz, channels, x, channels, rows, channels, norm_act(), room, room + stride, streamed,
                     true);
    add_to(sum_g + part * stride, room, channels), add_to(sum_gx + part * stride, room + stride, channels);
  }
  // The gradients of weight, bias and statistics from all parts.
  void finish(const LinkedInputParams& p, idx channels, idx parts) const {
    if (!*this) return;
    fold_parts(sum_g, parts, stride, channels), fold_parts(sum_gx, parts, stride, channels);
    const T *weight = static_cast<const T*>(p.weight), *invstd = static_cast<const T*>(p.stats) + channels;
    T *d_weight = static_cast<T*>(p.d_weight), *d_bias = static_cast<T*>(p.d_bias),
      *d_stats = static_cast<T*>(p.d_stats);
    for (idx c = 0; c < channels; ++c) {
      const double w = weight[c], i = invstd[c];
      const double g = parts ? sum_g[c] : 0, gx = parts ? sum_gx[c] : 0;  // an empty batch has no parts
      if (d_weight) d_weight[c] = static_cast<T>(i * gx);
      if (d_bias) d_bias[c] = static_cast<T>(g);
      if (!d_stats) continue;
      d_stats[c] = static_cast<T>(-w * i * g);
      d_stats[channels + c] = static_cast<T>(w * gx);
      d_stats[2 * channels + c] = T(0);
    }
  }
};

// The first op's side: the affine form of its output's gradient, for rows of `count` values a channel.
template <class T>
FF_INLINE NormGrad<T> linked_gradient(Arena& a, const void* stats_of, const LinkedOutputParams& p, idx channels,
                                      idx count, idx times) {
  T *slope = a.take<T>(channels * times), *curve = a.take<T>(channels * times), *offset = a.take<T>(channels * times);
  const T *stats = static_cast<const T*>(stats_of), *d = static_cast<const T*>(p.d_stats);
  const double n = static_cast<double>(max_idx(count, 1)), less = static_cast<double>(max_idx(count - 1, 1));
  for (idx c = 0, end = round_up_lanes<T>(channels); c < end; ++c) {
    slope[c] = T(1), curve[c] = offset[c] = T(0);
    if (c >= channels) continue;
    const double mean = stats[c], i = stats[channels + c];
    const double bend =
        2 * static_cast<double>(d[2 * channels + c]) / less - static_cast<double>(d[channels + c]) * i * i * i / n;
    curve[c] = static_cast<T>(bend);
    offset[c] = static_cast<T>(static_cast<double>(d[c]) / n - bend * mean);
  }
  repeat(slope, channels, times), repeat(curve, channels, times), repeat(offset, channels, times);
  return {slope, curve, offset};
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
