// SPDX-License-Identifier: Apache-2.0
// Backward, image by image, from dout, x, what the gates were made of, and nothing else of the size of x:
//   (1) ds = sum_c dout·x·g, through the sigmoid: t; with batch statistics the sums of t over the batch come first
//   (2) t through the norm: dy; dy through the convolution: gradients of the two planes, and of its weight
//   (3) dg = sum_p du·x with du = dout·s + gradients of the planes; dg through the MLP
//   (4) dx = du·g + gradients of avg and max
// x is read in 1 and 3, dout in 1, 3 and 4; 3 and 4 (without batch statistics 1 too) find them in L2.
// Gradients of weights are summed over chunks of images, which are merged in order in float64.
#pragma once
#include "cbam/gates.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr idx kChunkBytes = 128 << 10;  // activations that one partial sum is of
constexpr idx kMostChunks = 32;

template <class T>
struct BackwardPlan {
  const CbamParams& p;
  Shape<T> s;
  idx group, chunks, taps;
  Mlp<T> mlp{};
  T *spatial = nullptr, *t = nullptr;  // [n][pixels]
  double *sum_t = nullptr, *sum_ty = nullptr;  // [n]
  T* mlp_parts = nullptr;              // [chunks][mlp_size]
  double* weight_parts = nullptr;      // [chunks][taps]
  T *slope = nullptr, *curve = nullptr, *offset = nullptr;
  T scale = 0, shift = 0;
  idx mlp_size;

  explicit BackwardPlan(const CbamParams& params) : p(params), s(params) {
    group = max_idx(s.images_of(kChunkBytes), ceil_div(p.n, kMostChunks));
    chunks = ceil_div(p.n, group), taps = 2 * p.k * p.k;
    mlp_size = MlpGrads<T>::size(round_up_lanes<T>(p.c), p.hidden);
  }
  void take(Arena& a) {
    if (p.w1) mlp.take(a, p.c, p.hidden);
    if (p.d_w1) mlp_parts = a.take<T>(chunks * mlp_size);
    if (!p.weight) return;
    spatial = a.take<T>(p.n * s.px.count), t = a.take<T>(p.n * s.px.count);
    sum_t = a.take<double>(p.n + 1), sum_ty = a.take<double>(p.n + 1);
    slope = a.take<T>(1), curve = a.take<T>(1), offset = a.take<T>(1);
    if (p.d_weight) weight_parts = a.take<double>(chunks * taps);
  }
  const T* plane(int which, idx i) const { return input<T>(p.planes) + (which * p.n + i) * s.px.count; }
};

// A task's scratch for one image after the other.
template <class T>
struct BackwardScratch {
  T *avg, *max, *gate, *hidden, *dhidden, *dgate, *davg, *dmax, *columns, *share;
  T *dy, *padded, *dmean_plane, *dmax_plane;

  BackwardScratch(Arena& a, const BackwardPlan<T>& b) {
    const idx stride = round_up_lanes<T>(b.p.c), count = b.p.weight ? b.s.px.count : 0;
    avg = a.take<T>(stride), max = a.take<T>(stride), gate = a.take<T>(stride), hidden = a.take<T>(2 * b.p.hidden);
    dhidden = a.take<T>(b.p.hidden);
    dgate = a.take<T>(b.s.columns + stride), davg = a.take<T>(stride), dmax = a.take<T>(stride);
    columns = a.take<T>(b.s.columns), share = a.take<T>(b.s.columns);
    dy = a.take<T>(count), dmean_plane = a.take<T>(count), dmax_plane = a.take<T>(count);
    padded = b.p.weight ? take_border<T>(a, b.s.border) : nullptr;
    if (avg) clear_border(b.s.border, padded);
  }
};

// The repeated gate of image i.
template <class T>
FF_INLINE void load_gate(const BackwardPlan<T>& b, idx i, T* columns) {
  b.s.px.repeat(columns, b.p.w1 ? input<T>(b.p.pooled) + (2 * b.p.n + i) * b.p.c : nullptr);
}

// (1) for image i: its spatial gate, t and the sums of t.
template <class T>
FF_INLINE void spatial_slope(const BackwardPlan<T>& b, idx i, T* columns) {
  const idx count = b.s.px.count;
  T *gate = b.spatial + i * count, *t = b.t + i * count;
  load_gate(b, i, columns);
  plane_gate<T>(b.plane(2, i), count, b.scale, b.shift, gate);
  channel_dots<T>(b.s.px, input<T>(b.p.dout) + i * b.s.image, input<T>(b.p.x) + i * b.s.image, columns, t);
  b.sum_t[i] = b.sum_ty[i] = 0;
  plane_gate_grad<T>(b.plane(2, i), gate, count, input<T>(b.p.stats)[0], t, b.sum_t + i, b.sum_ty + i);
}

// (2) for image i.
template <class T>
FF_INLINE void plane_grads(const BackwardPlan<T>& b, idx i, BackwardScratch<T>& w, double* d_weight) {
  const idx count = b.s.px.count, size = b.p.k * b.p.k;
  const T *y = b.plane(2, i), *t = b.t + i * count;
  const vec<T> slope = splat<T>(*b.slope), curve = splat<T>(*b.curve), offset = splat<T>(*b.offset);
  for_lanes<T>(count, [&](idx k, idx n) {
    store_n<T>(w.dy + k, fma(load_n<T>(t + k, n), slope, fma(load_n<T>(y + k, n), curve, offset)), n);
  });
  enclose<T>(b.s.border, w.dy, w.padded);
  const T* weight = input<T>(b.p.weight);
  correlate<T>(b.s.border, w.padded, weight, -1, false, w.dmax_plane);
  correlate<T>(b.s.border, w.padded, weight + size, -1, false, w.dmean_plane);
  const vec<T> channels = splat<T>(static_cast<T>(b.p.c));
  for_lanes<T>(count,
               [&](idx k, idx n) { store_n<T>(w.dmean_plane + k, load_n<T>(w.dmean_plane + k, n) / channels, n); });
  if (!d_weight) return;
  weight_grad<T>(b.s.border, {b.plane(0, i), b.plane(1, i)}, w.padded, d_weight);
}

// dg through the MLP: davg and dmax of image i.
template <class T>
FF_INLINE void mlp_grads(const BackwardPlan<T>& b, idx i, BackwardScratch<T>& w, const MlpGrads<T>* grads) {
  const idx channels = b.p.c, all = b.p.n * channels;
  const T* pooled = input<T>(b.p.pooled) + i * channels;
  copy_padded<T>(w.avg, pooled, channels), copy_padded<T>(w.max, pooled + all, channels);
  for (idx c = channels; c < b.mlp.stride; ++c) w.dgate[c] = T(0);
  mlp_hidden<T>(b.mlp, w.avg, w.max, w.hidden);
  copy_padded<T>(w.gate, pooled + 2 * all, channels);
  mlp_backward<T>(b.mlp, w.avg, w.max, w.gate, w.hidden, w.dgate, w.dhidden, w.davg, w.dmax, grads);
}

// (2) to (4) for image i.
template <class T>
FF_INLINE void image_grads(const BackwardPlan<T>& b, idx i, BackwardScratch<T>& w, const MlpGrads<T>* grads,
                           double* d_weight) {
  const Pixels<T>& px = b.s.px;
  const T *dout = input<T>(b.p.dout) + i * b.s.image, *x = input<T>(b.p.x) + i * b.s.image;
  SpatialGrad<T> grad{};
  if (b.p.weight) {
    plane_grads<T>(b, i, w, d_weight);
    grad = {b.spatial + i * px.count, w.dmean_plane, w.dmax_plane, b.p.channels + i * px.count};
  }
  load_gate(b, i, w.columns);
  if (b.p.w1) {
    gate_sums<T>(px, grad, dout, x, w.dgate);
    mlp_grads<T>(b, i, w, grads);
    const T count = static_cast<T>(px.count);
    for (idx c = 0; c < b.p.c; ++c) w.davg[c] /= count;
    px.repeat(w.share, w.davg);
  } else {
    fill_zero(w.share, b.s.columns);
  }
  if (!b.p.dx) return;
  T* dx = output<T>(b.p.dx) + i * b.s.image;
  pixel_grads<T>(px, grad, dout, w.columns, w.share, dx);
  for (idx c = 0; b.p.w1 && c < b.p.c; ++c) dx[b.p.positions[i * b.p.c + c] * b.p.c + c] += w.dmax[c];
}

// The chunks' sums, in order and in float64, as the gradients of the MLP's tensors.
template <class T>
FF_INLINE void merge_mlp(const BackwardPlan<T>& b) {
  const idx channels = b.p.c, hidden = b.p.hidden, stride = b.mlp.stride;
  const MlpGrads<T> first(b.mlp_parts, stride, hidden);
  const auto total = [&](const T* at) {
    double sum = 0;
    for (idx k = 0; k < b.chunks; ++k) sum += static_cast<double>(at[k * b.mlp_size]);
    return static_cast<T>(sum);
  };
  for (idx j = 0; j < hidden; ++j) {
    for (idx c = 0; c < channels; ++c) {
      output<T>(b.p.d_w1)[j * channels + c] = total(first.w1 + j * stride + c);
      output<T>(b.p.d_w2)[c * hidden + j] = total(first.w2 + j * stride + c);
    }
    output<T>(b.p.d_b1)[j] = total(first.b1 + j);
  }
  for (idx c = 0; c < channels; ++c) output<T>(b.p.d_b2)[c] = total(first.b2 + c);
}

template <class T>
FF_INLINE void cbam_backward(const CbamParams& p) {
  BackwardPlan<T> b(p);
  Arena a(Scratch::shared);
  b.take(a);
  if (p.w1) b.mlp.fill(input<T>(p.w1), input<T>(p.b1), input<T>(p.w2), input<T>(p.b2));
  if (p.weight) norm_line<T>(p, input<T>(p.stats), &b.scale, &b.shift), b.sum_t[0] = b.sum_ty[0] = 0;
  const auto finish_norm = [&](T* d_weight, T* d_bias) {
    if (p.n == 0) *b.sum_t = *b.sum_ty = 0;
    norm_backward_vectors<T>(input<T>(p.norm_weight), input<T>(p.stats), 1, b.sum_t, b.sum_ty, p.n, 1,
                             static_cast<double>(max_idx(1, p.n * b.s.px.count)), p.batch_stats, b.slope, b.curve,
                             b.offset, d_weight, d_bias);
  };
  const bool sums_first = p.weight && p.batch_stats;
  if (sums_first) {
    for_tasks(b.chunks, p.threads, [&](idx chunk) {
      T* columns = nullptr;
      Arena a(Scratch::task);
      columns = a.take<T>(b.s.columns);
      for (idx i = chunk * b.group; i < min_idx(p.n, (chunk + 1) * b.group); ++i) spatial_slope(b, i, columns);
    });
    finish_norm(output<T>(p.d_norm_weight), output<T>(p.d_norm_bias));
  } else if (p.weight) {  // a line whatever the sums are
    *b.slope = *input<T>(p.norm_weight) * input<T>(p.stats)[1], *b.curve = *b.offset = T(0);
  }
  for_tasks(b.chunks, p.threads, [&](idx chunk) {
    Arena a(Scratch::task);
    BackwardScratch<T> w(a, b);
    MlpGrads<T> grads(b.mlp_parts + (p.d_w1 ? chunk * b.mlp_size : 0), b.mlp.stride, p.hidden);
    double* d_weight = p.d_weight ? b.weight_parts + chunk * b.taps : nullptr;
    if (p.d_w1) fill_zero(grads.w1, b.mlp_size);
    if (d_weight) fill_zero(d_weight, b.taps);
    for (idx i = chunk * b.group; i < min_idx(p.n, (chunk + 1) * b.group); ++i) {
      if (p.weight && !sums_first) spatial_slope(b, i, w.columns);
      image_grads<T>(b, i, w, p.d_w1 ? &grads : nullptr, d_weight);
    }
  });
  if (p.weight && !sums_first) finish_norm(output<T>(p.d_norm_weight), output<T>(p.d_norm_bias));
  if (p.d_w1) merge_mlp(b);
  if (!p.d_weight) return;
  fold_parts(b.weight_parts, b.chunks, b.taps, p.n ? b.taps : 0);
  for (idx k = 0; k < b.taps; ++k) output<T>(p.d_weight)[k] = p.n ? static_cast<T>(b.weight_parts[k]) : T(0);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
