// SPDX-License-Identifier: Apache-2.0
// The separable block in training with nothing between its two convolutions: the depthwise output is never written.
// Forward and backward walk the image in bands of rows whose depthwise output, products and gradients stay in L2;
// backward computes the depthwise output again. Of the 20 passes over an activation that the general form takes, 12 are
// left.
#pragma once
#include "norm/passes.h"
#include "separable_conv/depthwise_pass.h"
#include "separable_conv/pointwise_pass.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr idx kRecomputeBand = 128 << 10;  // bytes of depthwise output in a band
constexpr idx kRecomputeImages = 8;  // backward's chunks are whole images: fewer cannot be shared out

FF_INLINE bool recomputed(const SeparableParams& p) { return !p.y1 && !p.norm1.weight && p.act1 == Act::none; }

template <class T>
FF_INLINE Bands recompute_bands(const DepthwiseShape& s) {
  return Bands(s, s.ow * s.c * static_cast<idx>(sizeof(T)), kRecomputeBand);
}

template <class T>
FF_INLINE void separable_recompute_training(const SeparableParams& p) {
  const DepthwiseShape& s = p.shape;
  const idx out = p.out_channels, pixels = s.n * s.oh * s.ow, stride = round_up_lanes<T>(out);
  const Bands bands = recompute_bands<T>(s);
  const bool measured = p.linked_output.on || (p.norm2.weight && p.batch_stats);
  T *w = nullptr, *bias1 = nullptr, *packed = nullptr, *bias2 = nullptr, *mean = nullptr, *m2 = nullptr;
  NormVectors<T> n2;
  LinkedInput<T> linked_input;
  Arena a(Scratch::shared);
  w = a.take<T>(s.kh * s.kw * round_up_lanes<T>(s.c)), bias1 = a.take<T>(s.c);
  packed = a.take<T>(packed_size<T>(out, s.c)), bias2 = a.take<T>(stride);
  if (measured) mean = a.take<T>(bands.count * stride), m2 = a.take<T>(bands.count * stride);
  n2.take(a, p.norm2, out), linked_input.take(a, p.linked_input, s.c);
  linked_input.fill(p.linked_input, s.c);
  pack_depthwise<T>(w, static_cast<const T*>(p.dw_weight), nullptr, s.c, s.kh * s.kw);
  copy_padded<T>(bias1, nullptr, s.c);
  pack_pointwise<T>(packed, static_cast<const T*>(p.pw_weight), nullptr, s.c, out, p.threads);
  copy_padded(bias2, static_cast<const T*>(p.pw_bias), out);
  constant_stats<T>(p.norm2, out, p.batch_stats);
  if (!measured) n2.fill(p.norm2, out);

  T *z = static_cast<T*>(p.out), *y2 = p.y2 ? static_cast<T*>(p.y2) : z;
  const bool streamed = measured && streamable(y2, pixels * out, out);
  const idx lda = block_stride<T>(s.c), ldy = streamed ? block_stride<T>(out) : out;
  const ForwardRow<T> row = row_kernels<T>(s).forward;
  for_tasks(bands.count, p.threads, [&](idx band) {
    const idx first = bands.first(band), end = bands.end(band), rows = end - first, count = rows * s.ow;
    const idx at = (bands.image(band) * s.oh + first) * s.ow * out;
    T *y1 = nullptr, *product = y2 + at, *room = nullptr;
    Arena a(Scratch::task);
    y1 = a.take<T>(count * lda);
    if (streamed) product = a.take<T>(count * ldy);
    if (linked_input) room = a.take<T>(window_size(s, rows));
    const T* image = window_rows(s, linked_input, static_cast<const T*>(p.x) + bands.image(band) * s.h * s.w * s.c,
                                 first, end, room);
    for (idx r = 0; r < rows; ++r)
      row(s, image, first + r, w, bias1, y1 + r * s.ow * lda, lda, T(-kInfinity), T(kInfinity));
    gemm<T, false>({.a = y1,
                    .lda = lda,
                    .b = packed,
                    .c = product,
                    .ldc = ldy,
                    .rows = count,
                    .cols = out,
                    .depth = s.c,
                    .bias = bias2});
    if (measured)
      moments_rows<T>(product, ldy, count, out, mean + band * stride, m2 + band * stride, streamed ? y2 + at : nullptr,
                      out);
    else if (p.y2)
      affine_act_rows<T>(z + at, out, product, ldy, count, out, n2.scale, n2.shift, p.act2);
    if (streamed) stream_fence();
  });
  if (!measured) return;
  merge_moments(
      mean, m2, bands.count, stride, out, p.norm2.eps, [&](idx b) { return (bands.end(b) - bands.first(b)) * s.ow; },
      static_cast<T*>(p.norm2.stats));
  if (p.linked_output.on) return;
  n2.fill(p.norm2, out);
  affine_act_pass<T>(z, y2, {pixels, out, 1}, n2, p.act2, p.threads);
}

// What the chunks of backward share, and their partial sums.
template <class T>
struct RecomputeBackward {
  SeparableParams p;
  idx chunks, stride1, stride2;
  T *w, *bias, *packed;  // depthwise weights and a zero bias; pointwise weights for the input's gradient
  NormBackward<T> norm2;
  LinkedInput<T> linked_input;
  T *pw_parts, *dw_parts;  // [chunks][out][stride1], [chunks][taps + 1][stride1]
  double* bias_parts;  // [chunks][stride2]
};

// One chunk: images [begin, end).
template <class T>
FF_INLINE void recompute_backward_images(const RecomputeBackward<T>& b, idx chunk, idx begin, idx end) {
  const SeparableParams& p = b.p;
  const DepthwiseShape& s = p.shape;
  const idx out = p.out_channels, taps = s.kh * s.kw, halo = (s.kh - 1) / s.sh, row = s.ow * s.c;
  const Bands bands = recompute_bands<T>(s);
  const RowKernels<T> kernels = row_kernels<T>(s);
  const bool below = p.dx || p.d_dw_weight,
             streamed = p.dx && streamable(static_cast<T*>(p.dx), s.n * s.h * s.w * s.c, s.c);
  const idx lda = block_stride<T>(s.c), ldg = block_stride<T>(out), most = bands.rows * s.ow;
  T *y1 = nullptr, *g2 = nullptr, *window = nullptr, *sums = nullptr, *room = nullptr, *dz = nullptr;
  Arena a(Scratch::task);
  y1 = a.take<T>(most * lda), g2 = a.take<T>(most * ldg), sums = a.take<T>(max_idx(b.stride2, 2 * b.stride1));
  window = a.take<T>((bands.rows + halo) * row);
  if (b.linked_input) room = a.take<T>(window_size(s, bands.rows)), dz = a.take<T>(window_size(s, bands.rows));
  T *d_pw = b.pw_parts + chunk * out * b.stride1, *d_dw = b.dw_parts + chunk * (taps + 1) * b.stride1;
  double* d_bias = b.bias_parts + chunk * b.stride2;
  fill_zero(d_dw, (taps + 1) * b.stride1), fill_zero(d_bias, b.stride2);
  if (p.d_pw_weight && begin == end) fill_zero(d_pw, out * b.stride1);
  PointwiseBackward<T> gradient{};
  gradient.out = out, gradient.dz = static_cast<const T*>(p.dout), gradient.y = static_cast<const T*>(p.y2);
  gradient.after = b.norm2.norm_act(p.act2), gradient.norm2 = b.norm2.form;
  for (idx band = begin * bands.per_image; band < end * bands.per_image; ++band) {
    const idx image = bands.image(band), first = bands.first(band), last = bands.end(band);
    const idx count = (last - first) * s.ow, above = max_idx(0, first - halo);
    const T* x = static_cast<const T*>(p.x) + image * s.h * s.w * s.c;
    const T* z = window_rows(s, b.linked_input, x, first, last, room);
    Ahead ahead;
    if (band + 1 < end * bands.per_image) {
      const idx next = (image * s.oh + last) * s.ow * out, bytes = count * out * static_cast<idx>(sizeof(T));
      ahead.add(gradient.dz + next, bytes);
      ahead.add(gradient.y ? gradient.y + next : nullptr, bytes);
    }
    output_grad_rows(gradient, g2, ldg, (image * s.oh + first) * s.ow, count);
    if (p.d_pw_bias) {
      fill_zero(sums, b.stride2);
      sums_rows<T>(g2, ldg, count, out, sums);
      add_to(d_bias, sums, out);
    }
    if (p.d_pw_weight) {
      for (idx oy = first; oy < last; ++oy)
        kernels.forward(s, z, oy, b.w, b.bias, y1 + (oy - first) * s.ow * lda, lda, T(-kInfinity), T(kInfinity));
      gemm<T, true>({.a = g2,
                     .lda = ldg,
                     .b = y1,
                     .ldb = lda,
                     .c = d_pw,
                     .ldc = b.stride1,
                     .rows = out,
                     .cols = s.c,
                     .depth = count,
                     .accumulate = band > begin * bands.per_image,
                     .ahead = &ahead});
    }
    if (!below) continue;
    gemm<T, false>({.a = g2,
                    .lda = ldg,
                    .b = b.packed,
                    .c = window + (first - above) * row,
                    .ldc = s.c,
                    .rows = count,
                    .cols = s.c,
                    .depth = out,
                    .ahead = &ahead});
    const T* dy = window - above * row;
    const idx line = s.w * s.c, low = complete_row(s, first), high = complete_row(s, last);
    T *dx = p.dx ? static_cast<T*>(p.dx) + image * s.h * line : nullptr, *to = b.linked_input ? dz - low * line : dx;
    for (idx oy = first; oy < last; ++oy) {
      if (p.d_dw_weight) kernels.weight_grad(s, z, dy + oy * row, oy, d_dw);
      for (idx y = complete_row(s, oy); p.dx && y < complete_row(s, oy + 1); ++y)
        kernels.input_grad(s, dy, above, last, y, b.w, to + y * line, streamed && !b.linked_input);
    }
    if (b.linked_input)
      b.linked_input.gradient(dx + low * line, dz, x + low * line, (high - low) * s.w, s.c, chunk, sums, streamed);
    const idx kept = last - max_idx(0, last - halo);  // rows that the next band of this image reads again
    if (last < s.oh) __builtin_memmove(window, dy + (last - kept) * row, static_cast<size_t>(kept * row) * sizeof(T));
  }
  if (streamed) stream_fence();
}

template <class T>
FF_INLINE void separable_recompute_backward(const SeparableParams& p) {
  const DepthwiseShape& s = p.shape;
  const idx out = p.out_channels, pixels = s.n * s.oh * s.ow, taps = s.kh * s.kw;
  const Wide v{pixels, out, 1};
  RecomputeBackward<T> b{};
  b.p = p, b.chunks = min_idx(s.n, backward_chunks<T>(pixels, s.c, out));
  b.stride1 = round_up_lanes<T>(s.c), b.stride2 = round_up_lanes<T>(out);
  NormGrad<T> linked{};
  Arena a(Scratch::shared);
  b.norm2.take(a, p.norm2, out, v), b.linked_input.take(a, p.linked_input, s.c, b.chunks);
  if (p.linked_output.on) linked = linked_gradient<T>(a, p.norm2.stats, p.linked_output, out, pixels, 1);
  b.w = a.take<T>(taps * b.stride1), b.bias = a.take<T>(b.stride1), b.packed = a.take<T>(packed_size<T>(s.c, out));
  b.pw_parts = a.take<T>(p.d_pw_weight ? b.chunks * out * b.stride1 : 0),
  b.dw_parts = a.take<T>(b.chunks * (taps + 1) * b.stride1);
  b.bias_parts = a.take<double>(b.chunks * b.stride2);
  const T* pw = static_cast<const T*>(p.pw_weight);
  b.norm2.run(p.norm2, out, v, static_cast<const T*>(p.dout), static_cast<const T*>(p.y2), p.act2, p.batch_stats,
              p.threads);
  if (p.linked_output.on) b.norm2.form = &linked;
  b.linked_input.fill(p.linked_input, s.c);
  for (idx chunk = 0; chunk < b.chunks; ++chunk) b.linked_input.zero(chunk);
  pack_depthwise<T>(b.w, static_cast<const T*>(p.dw_weight), nullptr, s.c, taps);
  copy_padded<T>(b.bias, nullptr, s.c);
  for_panels<T>(s.c, out, p.threads, [&](idx panel) { pack_rows<T>(b.packed, pw, s.c, out, panel); });
  for_tasks(b.chunks, p.threads, [&](idx chunk) {
    recompute_backward_images(b, chunk, s.n * chunk / b.chunks, s.n * (chunk + 1) / b.chunks);
  });
  b.linked_input.finish(p.linked_input, s.c, b.chunks);
  if (p.d_dw_weight)
    store_depthwise_grad(b.dw_parts, b.chunks, s, static_cast<T*>(p.d_dw_weight), static_cast<T*>(nullptr));
  if (p.d_pw_weight)
    store_pointwise_grad(b.pw_parts, b.bias_parts, b.chunks, s.c, out, static_cast<T*>(p.d_pw_weight),
                         static_cast<T*>(p.d_pw_bias), p.threads);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
