// SPDX-License-Identifier: Apache-2.0
// Forward, image by image: (1) mean and maximum of each channel, MLP; (2) mean and maximum of x·g over the channels of
// each pixel, convolution; (3) out = x·g·s. Passes 2 and 3 find the image in L2. Batch statistics stand between 2 and
// 3, so that training reads x once more from further away.
#pragma once
#include "cbam/gates.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr idx kForwardBytes = 32 << 10;

// A task's scratch for one image after the other.
template <class T>
struct ForwardScratch {
  T *avg, *max, *hidden, *gate, *columns;  // [stride of the MLP] each, columns [shape.columns]
  T *planes, *padded[2], *spatial;
  int32_t* position;

  ForwardScratch(Arena& a, const CbamParams& p, const Shape<T>& s) {
    const idx stride = round_up_lanes<T>(p.c);
    avg = a.take<T>(stride), max = a.take<T>(stride), hidden = a.take<T>(2 * p.hidden), gate = a.take<T>(stride);
    columns = a.take<T>(s.columns), position = a.take<int32_t>(p.c);
    planes = padded[0] = padded[1] = spatial = nullptr;
    if (!p.weight) return;
    planes = a.take<T>(3 * s.px.count), spatial = a.take<T>(s.px.count);
    padded[0] = take_border<T>(a, s.border), padded[1] = take_border<T>(a, s.border);
    clear_border(s.border, padded[0]), clear_border(s.border, padded[1]);
  }
};

// The channel gate of image i into t.gate, and repeated into t.columns.
template <class T>
FF_INLINE void channel_gate_of(const CbamParams& p, const Shape<T>& s, const Mlp<T>& mlp, const T* x, idx i,
                               ForwardScratch<T>& t) {
  if (!p.w1) return s.px.repeat(t.columns, nullptr);
  for (idx c = p.c; c < mlp.stride; ++c) t.avg[c] = t.max[c] = T(0);
  pool_image<T>(x, s.px.count, p.c, {t.avg, t.max, t.position});
  mlp_hidden<T>(mlp, t.avg, t.max, t.hidden);
  mlp_gate<T>(mlp, t.hidden, t.gate);
  s.px.repeat(t.columns, t.gate);
  if (!p.pooled) return;
  for (idx c = 0; c < p.c; ++c) {
    T* pooled = output<T>(p.pooled) + i * p.c + c;
    pooled[0] = t.avg[c], pooled[p.n * p.c] = t.max[c], pooled[2 * p.n * p.c] = t.gate[c];
    p.positions[i * p.c + c] = t.position[c];
  }
}

// The planes of image i, the convolution last; where they are.
template <class T>
FF_INLINE const T* planes_of(const CbamParams& p, const Shape<T>& s, const T* x, idx i, ForwardScratch<T>& t) {
  const idx count = s.px.count, step = p.planes ? p.n * count : count;
  T* max = p.planes ? output<T>(p.planes) + i * count : t.planes;
  T *mean = max + step, *y = max + 2 * step;
  channel_maxima<T>(s.px, x, t.columns, max, mean, p.channels ? p.channels + i * count : nullptr);
  enclose<T>(s.border, max, t.padded[0]), enclose<T>(s.border, mean, t.padded[1]);
  const T* weight = input<T>(p.weight);
  correlate<T>(s.border, t.padded[0], weight, 1, false, y);
  correlate<T>(s.border, t.padded[1], weight + p.k * p.k, 1, true, y);
  return y;
}

template <class T>
FF_INLINE void cbam_forward(const CbamParams& p) {
  const Shape<T> s(p);
  const idx group = s.images_of(kForwardBytes), tasks = ceil_div(p.n, group);
  Mlp<T> mlp{};
  T *mean = nullptr, *m2 = nullptr, *stats = nullptr;
  Arena a(Scratch::shared);
  if (p.w1) mlp.take(a, p.c, p.hidden);
  mean = a.take<T>(p.n), m2 = a.take<T>(p.n), stats = a.take<T>(3);
  if (p.w1) mlp.fill(input<T>(p.w1), input<T>(p.b1), input<T>(p.w2), input<T>(p.b2));
  if (p.stats) stats = output<T>(p.stats);
  T scale = 0, shift = 0;
  if (p.weight && !p.batch_stats) {
    running_stats<T>(input<T>(p.norm_mean), input<T>(p.norm_var), 1, p.eps, stats);
    norm_line<T>(p, stats, &scale, &shift);
  }
  const T* x = input<T>(p.x);
  T* out = output<T>(p.out);
  for_tasks(tasks, p.threads, [&](idx task) {
    Arena a(Scratch::task);
    ForwardScratch<T> t(a, p, s);
    for (idx i = task * group; i < min_idx(p.n, (task + 1) * group); ++i) {
      channel_gate_of<T>(p, s, mlp, x + i * s.image, i, t);
      const T* y = p.weight ? planes_of<T>(p, s, x + i * s.image, i, t) : nullptr;
      if (y && p.batch_stats) {
        plane_moments<T>(y, s.px.count, mean + i, m2 + i);
        continue;
      }
      if (y) plane_gate<T>(y, s.px.count, scale, shift, t.spatial);
      scale_pixels<T>(s.px, x + i * s.image, t.columns, t.spatial, out + i * s.image);
    }
  });
  if (!p.weight || !p.batch_stats) return;
  merge_moments<T>(mean, m2, p.n, 1, 1, p.eps, [&](idx) { return s.px.count; }, stats);
  norm_line<T>(p, stats, &scale, &shift);
  for_tasks(tasks, p.threads, [&](idx task) {
    T *columns = nullptr, *spatial = nullptr;
    Arena a(Scratch::task);
    columns = a.take<T>(s.columns), spatial = a.take<T>(s.px.count);
    for (idx i = task * group; i < min_idx(p.n, (task + 1) * group); ++i) {
      s.px.repeat(columns, p.w1 ? input<T>(p.pooled) + (2 * p.n + i) * p.c : nullptr);
      plane_gate<T>(input<T>(p.planes) + (2 * p.n + i) * s.px.count, s.px.count, scale, shift, spatial);
      scale_pixels<T>(s.px, x + i * s.image, columns, spatial, out + i * s.image);
    }
  });
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
