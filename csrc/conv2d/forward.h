// SPDX-License-Identifier: Apache-2.0
// Forward: blocks of windows are gathered, multiplied, and measured or normalised and activated while they are in L2.
//   inference  the norm is folded into weights and bias: one pass
//   training   y is kept; with batch statistics a second pass normalises and activates
// A 1×1 convolution of stride 1 without padding is the pointwise one.
#pragma once
#include "conv2d/weights.h"
#include "norm/passes.h"

namespace ff {
namespace FF_ISA {
namespace {

FF_INLINE bool is_pointwise(const ConvShape& s) {
  return s.kh == 1 && s.kw == 1 && s.sh == 1 && s.sw == 1 && s.oh == s.h && s.ow == s.w;
}

template <class T>
struct ConvForward {
  ConvShape s;
  const T *x, *packed, *bias;
  T lo, hi;                    // bounds of y
  T* y;
  T *mean, *m2;                // moments of y by blocks, or null
  T* z;                        // act(y·scale + shift), or null; may be y
  const T *scale, *shift;
  Act act;
  int threads;
};

// How the pixels are cut, and how their moments lie: [blocks·times][stride] for `times` shares of each block.
struct ConvBlocks {
  idx pixels, block, count, times, stride;
};

template <class T>
FF_INLINE ConvBlocks conv_blocks(const ConvShape& s) {
  const idx pixels = s.n * s.oh * s.ow, depth = s.c * s.kh * s.kw;
  const Wide v = is_pointwise(s) ? Wide{pixels, s.o, 1} : widened<T>(pixels, s.o);
  idx block = block_rows<T>(depth + s.o);
  block = max_idx(v.times, block / v.times * v.times);
  return {pixels, block, ceil_div(pixels, block), v.times, v.times > 1 ? s.o : round_up_lanes<T>(s.o)};
}

template <class T>
FF_INLINE void pointwise_as_conv(const ConvForward<T>& p) {
  PointwiseForward<T> pass{};
  pass.rows = p.s.n * p.s.h * p.s.w, pass.in = p.s.c, pass.out = p.s.o, pass.threads = p.threads;
  pass.x = p.x, pass.packed = p.packed, pass.bias = p.bias, pass.y = p.y;
  pass.mean = p.mean, pass.m2 = p.m2, pass.stride = round_up_lanes<T>(p.s.o);
  pass.z = p.z, pass.scale2 = p.scale, pass.shift2 = p.shift, pass.act2 = p.act;
  pointwise_forward_pass(pass);
}

template <class T>
FF_INLINE void conv_forward_pass(const ConvForward<T>& p, const ConvBlocks& cut) {
  const Windows windows(p.s);
  const idx depth = windows.depth(), stride = block_stride<T>(depth), o = p.s.o;
  for_tasks(cut.count, p.threads, [&](idx b) {
    const idx first = b * cut.block, rows = min_idx(cut.block, cut.pixels - first);
    T* a = nullptr;
    lay_out(Scratch::task, [&](Arena& arena) { a = arena.take<T>(rows * stride); });
    gather_windows(windows, p.x, first, rows, a, stride);
    T* y = p.y + first * o;
    gemm<T, false>({a, stride, p.packed, 0, y, o, rows, o, depth, p.bias, p.lo, p.hi, false});
    const idx wide = o * cut.times, wide_rows = rows / cut.times, part = cut.times * cut.stride;
    if (p.mean) moments_rows<T>(y, wide, wide_rows, wide, p.mean + b * part, p.m2 + b * part);
    if (p.z) affine_act_rows<T>(p.z + first * o, wide, y, wide, wide_rows, wide, p.scale, p.shift, p.act);
  });
}

template <class T>
FF_INLINE void conv_inference(const Conv2dParams& p) {
  const ConvShape& s = p.shape;
  const idx depth = s.c * s.kh * s.kw;
  T *packed = nullptr, *room = nullptr, *scale = nullptr, *shift = nullptr;
  lay_out(Scratch::shared, [&](Arena& a) {
    packed = a.take<T>(packed_size<T>(s.o, depth)), room = a.take<T>(packed_size<T>(s.o, depth));
    scale = a.take<T>(s.o), shift = a.take<T>(s.o);
  });
  fold<T>(p.norm, p.bias, s.o, scale, shift);
  pack_windows<T>(packed, room, static_cast<const T*>(p.weight), p.norm.weight ? scale : nullptr, s, p.threads);

  ConvForward<T> pass{};
  pass.s = s, pass.threads = p.threads, pass.act = p.act;
  pass.x = static_cast<const T*>(p.x), pass.packed = packed, pass.bias = shift, pass.y = static_cast<T*>(p.out);
  const bool clamped = clamp_bounds(p.act, &pass.lo, &pass.hi);
  if (is_pointwise(s)) {
    if (p.act != Act::none) pass.z = pass.y;
    pointwise_as_conv(pass);
    return;
  }
  if (!clamped) pass.z = pass.y;
  ConvBlocks cut = conv_blocks<T>(s);
  const idx rounds = max_idx(1, ceil_div(cut.count, p.threads));
  if (rounds < 4) {  // few blocks: cut them so that every thread gets as many; each pixel is computed the same way
    cut.block = max_idx(cut.times, ceil_div(ceil_div(cut.pixels, rounds * p.threads), cut.times) * cut.times);
    cut.count = ceil_div(cut.pixels, cut.block);
  }
  conv_forward_pass(pass, cut);
}

template <class T>
FF_INLINE void conv_training(const Conv2dParams& p) {
  const ConvShape& s = p.shape;
  const ConvBlocks cut = conv_blocks<T>(s);
  const idx size = packed_size<T>(s.o, s.c * s.kh * s.kw);
  const bool measure = p.norm.weight && p.batch_stats;
  T *packed = nullptr, *room = nullptr, *bias = nullptr, *mean = nullptr, *m2 = nullptr;
  NormVectors<T> n;
  lay_out(Scratch::shared, [&](Arena& a) {
    packed = a.take<T>(size), room = a.take<T>(size), bias = a.take<T>(s.o);
    if (measure) {
      mean = a.take<T>(cut.count * cut.times * cut.stride);
      m2 = a.take<T>(cut.count * cut.times * cut.stride);
    }
    n.take(a, p.norm, s.o);
  });
  pack_windows<T>(packed, room, static_cast<const T*>(p.weight), nullptr, s, p.threads);
  copy_padded(bias, static_cast<const T*>(p.bias), s.o);
  constant_stats<T>(p.norm, s.o, p.batch_stats);

  T* z = static_cast<T*>(p.out);
  ConvForward<T> pass{};
  pass.s = s, pass.threads = p.threads, pass.act = p.act;
  pass.x = static_cast<const T*>(p.x), pass.packed = packed, pass.bias = bias, pass.y = p.y ? static_cast<T*>(p.y) : z;
  clamp_bounds(Act::none, &pass.lo, &pass.hi);
  pass.mean = mean, pass.m2 = m2;
  if (!measure && p.y) {  // what follows is known already: apply it while the block is in L2
    n.fill(p.norm, s.o, cut.times);
    pass.z = z, pass.scale = n.scale, pass.shift = n.shift;
  }
  if (is_pointwise(s))
    pointwise_as_conv(pass);
  else
    conv_forward_pass(pass, cut);
  if (!measure) return;
  merge_moments(mean, m2, cut.count * cut.times, cut.stride, s.o, p.norm.eps,
                [&](idx part) { return min_idx(cut.block, cut.pixels - part / cut.times * cut.block) / cut.times; },
                static_cast<T*>(p.norm.stats));
  const Wide v = widened<T>(cut.pixels, s.o);
  n.fill(p.norm, s.o, v.times);
  affine_act_pass<T>(z, pass.y, v, n, p.act, p.threads);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
