// SPDX-License-Identifier: Apache-2.0
// Batch normalisation with an activation, alone: two passes in training (statistics, apply) and in backward (sums,
// gradient), one in evaluation. Results do not depend on the number of threads: blocks follow from the shape.
#include "norm/passes.h"

namespace ff {
namespace FF_ISA {
namespace {

template <class T>
FF_INLINE void inference(const BatchNormParams& p) {
  const Wide v = widened<T>(p.rows, p.channels);
  NormVectors<T> n;
  Arena a(Scratch::shared);
  n.take(a, p.norm, p.channels);
  fold<T>(p.norm, nullptr, p.channels, n.scale, n.shift);
  repeat(n.scale, p.channels, v.times), repeat(n.shift, p.channels, v.times);
  affine_act_pass<T>(static_cast<T*>(p.out), static_cast<const T*>(p.x), v, n, p.act, p.threads);
}

template <class T>
FF_INLINE void measure(const BatchNormParams& p, const Wide& v, idx block, T* mean, T* m2) {
  const idx blocks = ceil_div(v.rows, block);
  for_tasks(blocks, p.threads, [&](idx b) {
    const idx first = b * block;
    moments_rows<T>(static_cast<const T*>(p.x) + first * v.channels, v.channels, min_idx(block, v.rows - first),
                    v.channels, mean + b * round_up_lanes<T>(v.channels), m2 + b * round_up_lanes<T>(v.channels));
  });
  const idx parts = v.times, stride = parts > 1 ? p.channels : round_up_lanes<T>(v.channels);
  merge_moments(
      mean, m2, blocks * parts, stride, p.channels, p.norm.eps,
      [&](idx part) { return min_idx(block, v.rows - part / parts * block); }, static_cast<T*>(p.norm.stats));
}

template <class T>
FF_INLINE void training(const BatchNormParams& p) {
  const Wide v = widened<T>(p.rows, p.channels);
  const idx block = stream_rows<T>(v.channels), part = p.batch_stats ? round_up_lanes<T>(v.channels) : 0;
  NormVectors<T> n;
  T *mean = nullptr, *m2 = nullptr;
  Arena a(Scratch::shared);
  n.take(a, p.norm, p.channels);
  mean = a.take<T>(ceil_div(v.rows, block) * part), m2 = a.take<T>(ceil_div(v.rows, block) * part);
  if (p.batch_stats) measure<T>(p, v, block, mean, m2);
  constant_stats<T>(p.norm, p.channels, p.batch_stats);
  n.fill(p.norm, p.channels, v.times);
  affine_act_pass<T>(static_cast<T*>(p.out), static_cast<const T*>(p.x), v, n, p.act, p.threads);
}

template <class T>
FF_INLINE void backward(const BatchNormParams& p) {
  const T *x = static_cast<const T*>(p.x), *dz = static_cast<const T*>(p.dout);
  const Wide v = widened<T>(p.rows, p.channels);
  NormBackward<T> norm;
  Arena a(Scratch::shared);
  norm.take(a, p.norm, p.channels, v);
  norm.run(p.norm, p.channels, v, dz, x, p.act, p.batch_stats, p.threads);
  T* dx = static_cast<T*>(p.out);
  if (!dx) return;
  const idx block = stream_rows<T>(2 * v.channels), c = v.channels;
  for_tasks(ceil_div(v.rows, block), p.threads, [&](idx b) {
    const idx first = b * block * c;
    norm_act_grad_rows<T>(dx + first, c, dz + first, c, x + first, c, min_idx(block, v.rows - b * block), c,
                          norm.norm_act(p.act), *norm.form);
  });
}

}  // namespace

void batch_norm_fwd_f32(const BatchNormParams& p) { inference<float>(p); }
void batch_norm_fwd_f64(const BatchNormParams& p) { inference<double>(p); }
void batch_norm_train_f32(const BatchNormParams& p) { training<float>(p); }
void batch_norm_train_f64(const BatchNormParams& p) { training<double>(p); }
void batch_norm_bwd_f32(const BatchNormParams& p) { backward<float>(p); }
void batch_norm_bwd_f64(const BatchNormParams& p) { backward<double>(p); }

}  // namespace FF_ISA
}  // namespace ff
