// SPDX-License-Identifier: Apache-2.0
// Forward: blocks of windows are gathered, multiplied, and measured or normalised and activated while they are in L2.
//   inference  the norm is folded into weights and bias: one pass
//   training   y is kept; with batch statistics a second pass normalises and activates
// A 1×1 convolution of stride 1 without padding is the pointwise one; large 3×3 ones of stride 1 train by Winograd's
// algorithm.
#pragma once
#include "conv2d/bands.h"
#include "conv2d/pooled.h"
#include "conv2d/winograd_forward.h"

namespace ff {
namespace FF_ISA {
namespace {

FF_INLINE bool is_pointwise(const ConvShape& s) {
  return s.kh == 1 && s.kw == 1 && s.sh == 1 && s.sw == 1 && s.oh == s.h && s.ow == s.w;
}

template <class T>
struct ConvForward {
  ConvShape s;
  const T* x;
  ForwardWeights<T> w;
  T lo, hi;                    // bounds of y
  T* y;
  T *mean, *m2;                // moments of y by blocks, or null
  T* z;                        // act(y·scale + shift), or null; may be y
  const T *scale, *shift;
  Act act;
  int threads;
};

// How the pixels are cut, into multiples of `unit`, and how their moments lie: [blocks·times][stride] for `times`
// shares of each block.
struct ConvBlocks {
  idx pixels, unit, block, count, times, stride;

  FF_CLASS_INLINE void cut(idx most) {
    block = max_idx(unit, most / unit * unit);
    count = ceil_div(pixels, block);
  }
};

template <class T>
FF_INLINE ConvBlocks conv_blocks(const ConvShape& s, idx group) {
  const idx pixels = s.n * s.oh * s.ow;
  const Wide v = is_pointwise(s) ? Wide{pixels, s.o, 1} : widened<T>(pixels, s.o);
  ConvBlocks blocks{pixels, v.times, 0, 0, v.times, v.times > 1 ? s.o : round_up_lanes<T>(s.o)};
  const bool banded = is_banded(s);
  while (blocks.unit % group || (banded && blocks.unit % s.ow)) blocks.unit += v.times;
  blocks.cut(banded ? band_rows<T>(s) * s.ow : block_rows<T>(Windows(s).depth() + s.o));
  return blocks;
}

template <class T>
FF_INLINE void pointwise_as_conv(const ConvForward<T>& p) {
  PointwiseForward<T> pass{};
  pass.rows = p.s.n * p.s.h * p.s.w, pass.in = p.s.c, pass.out = p.s.o, pass.threads = p.threads;
  pass.x = p.x, pass.packed = p.w.single, pass.bias = p.w.bias, pass.y = p.y;
  pass.mean = p.mean, pass.m2 = p.m2, pass.stride = round_up_lanes<T>(p.s.o);
  pass.z = p.z, pass.scale2 = p.scale, pass.shift2 = p.shift, pass.act2 = p.act;
  pointwise_forward_pass(pass);
}

// y = windows × weights + bias for pixels [first, first + rows), windows of `group` pixels at once.
template <class T>
FF_INLINE void multiply_windows(const ConvForward<T>& p, idx group, idx first, idx rows, T* a) {
  const Windows windows(p.s, group);
  const idx depth = windows.depth(), stride = block_stride<T>(depth), cols = group * p.s.o;
  gather_windows(windows, p.x, first / group, rows / group, a, stride);
  gemm<T, false>({.a = a,
                  .lda = stride,
                  .b = group > 1 ? p.w.grouped : p.w.single,
                  .c = p.y + first * p.s.o,
                  .ldc = cols,
                  .rows = rows / group,
                  .cols = cols,
                  .depth = depth,
                  .bias = p.w.bias,
                  .lo = p.lo,
                  .hi = p.hi});
}

// The same from bands, for pixels that are whole rows.
template <class T>
FF_INLINE void multiply_bands(const ConvForward<T>& p, idx first, idx pixels) {
  const ConvShape& s = p.s;
  const Band shape(s);
  const idx count = pixels / s.ow, most = (min_idx(count, s.oh) - 1) * s.sh + s.kh;
  T* band = nullptr;
  Arena arena(Scratch::task);
  band = arena.take<T>(shape.size<T>(most));
  for_parts(s.oh, first / s.ow, count, [&](idx image, idx row, idx rows, idx done) {
    copy_band<T>(shape, p.x + image * s.h * s.w * s.c, row * s.sh - s.top, (rows - 1) * s.sh + s.kh, band);
    convolve_band<T>(s, p.w, p.lo, p.hi, band, rows, p.y + (first + done * s.ow) * s.o);
  });
}

template <class T>
FF_INLINE void multiply_gathered(const ConvForward<T>& p, idx first, idx rows) {
  const idx group = p.w.group, stride = block_stride<T>(Windows(p.s, group).depth());
  const idx row = max_idx(ceil_div(stride, group), block_stride<T>(Windows(p.s).depth()));
  T* a = nullptr;
  Arena arena(Scratch::task);
  a = arena.take<T>(rows * row);
  multiply_windows(p, group, first, rows, a);
  // A zero times what a neighbour alone sees is NaN where that is not finite.
  if (group > 1 && any_nan<T>(p.y + first * p.s.o, rows * p.s.o)) multiply_windows(p, 1, first, rows, a);
}

template <class T>
FF_INLINE void conv_forward_pass(const ConvForward<T>& p, const ConvBlocks& blocks) {
  const idx o = p.s.o;
  const bool banded = is_banded(p.s);
  for_tasks(blocks.count, p.threads, [&](idx b) {
    const idx first = b * blocks.block, rows = min_idx(blocks.block, blocks.pixels - first);
    T* y = p.y + first * o;
    if (banded)
      multiply_bands(p, first, rows);
    else
      multiply_gathered(p, first, rows);
    const idx wide = o * blocks.times, wide_rows = rows / blocks.times, part = blocks.times * blocks.stride;
    if (p.mean) moments_rows<T>(y, wide, wide_rows, wide, p.mean + b * part, p.m2 + b * part);
    if (p.z) affine_act_rows<T>(p.z + first * o, wide, y, wide, wide_rows, wide, p.scale, p.shift, p.act);
  });
}

// The block by the direct sum.
template <class T>
FF_NOINLINE void multiply_directly(const ConvForward<T>& p, idx first, idx rows) {
  const idx depth = Windows(p.s).depth(), most = block_rows<T>(depth + p.s.o);
  T* a = nullptr;
  Arena arena(Scratch::task);
  a = arena.take<T>(most * block_stride<T>(depth));
  for (idx done = 0; done < rows; done += most) multiply_windows(p, 1, first + done, min_idx(most, rows - done), a);
}

template <class T>
FF_INLINE void conv_winograd_pass(const ConvForward<T>& p, const TileBlocks& blocks, const PlaceWeights<T>& u,
                                  idx stride) {
  const idx o = p.s.o;
  transform_windows(u, p.w.single, p.s, p.threads);
  winograd_forward_pass<T>({p.s, blocks, p.x, p.w.bias, u, p.y, p.threads}, [&](idx b, idx first, idx rows) {
    T* y = p.y + first * o;
    // A value that is not finite spreads over its tile: only the direct sum keeps it to its windows.
    if (!all_finite(y, rows * o)) multiply_directly(p, first, rows);
    if (p.mean) moments_rows<T>(y, o, rows, o, p.mean + b * stride, p.m2 + b * stride);
    if (p.z) affine_act_rows<T>(p.z + first * o, o, y, o, rows, o, p.scale, p.shift, p.act);
  });
}

template <class T>
FF_INLINE void conv_inference(const Conv2dParams& p) {
  const ConvShape& s = p.shape;
  const bool pointwise = is_pointwise(s);
  ConvForward<T> pass{};
  T* scale = nullptr;
  Arena a(Scratch::shared);
  pass.w.take(a, s, pointwise ? 1 : pixel_group<T>(s));
  scale = a.take<T>(s.o);
  fold<T>(p.norm, p.bias, s.o, scale, pass.w.bias);
  pass.w.pack(static_cast<const T*>(p.weight), p.norm.weight ? scale : nullptr, s, p.threads);
  pass.s = s, pass.threads = p.threads, pass.act = p.act;
  pass.x = static_cast<const T*>(p.x), pass.y = static_cast<T*>(p.out);
  const bool clamped = clamp_bounds(p.act, &pass.lo, &pass.hi);
  if (pointwise) {
    if (p.act != Act::none) pass.z = pass.y;
    pointwise_as_conv(pass);
    return;
  }
  if (!clamped) pass.z = pass.y;
  ConvBlocks blocks = conv_blocks<T>(s, pass.w.group);
  const idx rounds = max_idx(1, ceil_div(blocks.count, p.threads));
  if (rounds < 4)  // few blocks: cut them so that every thread gets as many; each pixel is computed the same way
    blocks.cut(ceil_div(blocks.pixels, rounds * p.threads) + blocks.unit - 1);
  conv_forward_pass(pass, blocks);
}

template <class T>
FF_INLINE void conv_training(const Conv2dParams& p) {
  const ConvShape& s = p.shape;
  const bool measure = p.linked_output.on || (p.norm.weight && p.batch_stats), pointwise = is_pointwise(s);
  const idx group = pointwise ? 1 : pixel_group<T>(s);
  const ConvBlocks blocks = conv_blocks<T>(s, group);
  const bool tiled = takes_winograd<T>(s);
  const TileBlocks tiles = tile_blocks<T>(s);
  const idx parts = tiled ? tiles.count : blocks.count * blocks.times;
  PlaceWeights<T> u{nullptr, s.o, s.c};
  ConvForward<T> pass{};
  NormVectors<T> n;
  Arena a(Scratch::shared);
  pass.w.take(a, s, group);
  if (measure) {
    pass.mean = a.take<T>(parts * blocks.stride);
    pass.m2 = a.take<T>(parts * blocks.stride);
  }
  u.u = a.take<T>(tiled ? u.size(s.o, s.c) : 0);
  n.take(a, p.norm, s.o);
  copy_padded(pass.w.bias, static_cast<const T*>(p.bias), s.o);
  pass.w.pack(static_cast<const T*>(p.weight), nullptr, s, p.threads);
  constant_stats<T>(p.norm, s.o, p.batch_stats);

  T* z = static_cast<T*>(p.out);
  pass.s = s, pass.threads = p.threads, pass.act = p.act;
  pass.x = static_cast<const T*>(p.x), pass.y = p.y ? static_cast<T*>(p.y) : z;
  clamp_bounds(Act::none, &pass.lo, &pass.hi);
  const bool pooled = p.pool.kh > 0;
  if (!measure && p.y && !pooled) {  // what follows is known already: apply it while the block is in L2
    n.fill(p.norm, s.o, blocks.times);
    pass.z = z, pass.scale = n.scale, pass.shift = n.shift;
  }
  if (pointwise) {
    pointwise_as_conv(pass);
  } else if (tiled) {
    if constexpr (has_winograd<T>) conv_winograd_pass(pass, tiles, u, blocks.stride);
  } else {
    conv_forward_pass(pass, blocks);
  }
  if (!measure && !pooled) return;
  if (measure)
    merge_moments(
        pass.mean, pass.m2, parts, blocks.stride, s.o, p.norm.eps,
        [&](idx part) {
          if (tiled) return tiles.pixels(part);
          return min_idx(blocks.block, blocks.pixels - part / blocks.times * blocks.block) / blocks.times;
        },
        static_cast<T*>(p.norm.stats));
  if (p.linked_output.on) return;
  if (pooled) {
    n.fill(p.norm, s.o);
    return norm_pool_pass<T>(p, pass.y, n);
  }
  const Wide v = widened<T>(blocks.pixels, s.o);
  n.fill(p.norm, s.o, v.times);
  affine_act_pass<T>(z, pass.y, v, n, p.act, p.threads);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
