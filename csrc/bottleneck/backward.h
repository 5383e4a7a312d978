// SPDX-License-Identifier: Apache-2.0
// Backward without the expansion or its gradient in memory. (1) sums of the last norm, the projection backwards; (2)
// bands of rows: the gradient through norm2 and the depthwise convolution, and of the expansion through the activation:
// g. norm1 needs sums of g over all pixels first, but is affine, d(w·x) = slope·g + curve·w·x + offset (see NormGrad),
// and slope is known: g meets x and the weights while it is in L2, and what curve and offset add follows from x:
//   d_expand = slope·(sum g·x - (sum g)·m) + curve·n·cov(w·x, x)      m the mean of x, n pixels
//   dx = (slope·g)·w + (x - m)·(wᵀ·curve·w) + sum_o (offset + curve·mean)·w_o
// (3) the second and third term of dx, and the residual's gradient.
#pragma once
#include "bottleneck/expansion.h"
#include "bottleneck/forward.h"
#include "norm/passes.h"

namespace ff {
namespace FF_ISA {
namespace {

template <class T>
struct BottleneckBackward {
  BottleneckParams p;
  Expansion<T> e;
  NormVectors<T> n1;
  NormGradVectors<T> grad1;
  const T *w, *dy;  // depthwise weights, packed; gradient of act(norm2(y1)), or with a projection of norm2(y1)
  NormAct<T> after;  // what dy has still to pass
  const NormGrad<T>* norm2;
  idx chunks, stride;  // channels padded
  T *scaled, *packed;  // slope·w [c][in], and packed by slices for dx
  T *dw_parts, *parts;  // [chunks][taps + 1][stride]; sums of x·g [chunks][in][stride]
  double* sums;  // of g [chunks][stride]
  double* sums_x;  // of g·(w·x - mean) [stride]
  bool crossed;  // whether sums over x·g are wanted

  FF_CLASS_INLINE T* packed_slice(idx slice) const {
    return packed + slice * (e.slices.width * round_up_lanes<T>(p.in_channels));
  }

  void take(Arena& a) {
    const DepthwiseShape& s = p.shape;
    e.take(a), n1.take(a, p.norm1, s.c), grad1.take(a, p.norm1, s.c);
    scaled = a.take<T>(s.c * p.in_channels),
    packed = a.take<T>(e.slices.count * e.slices.width * round_up_lanes<T>(p.in_channels));
    dw_parts = a.take<T>(chunks * (s.kh * s.kw + 1) * stride),
    parts = a.take<T>(crossed ? chunks * p.in_channels * stride : 0);
    sums = a.take<double>(chunks * stride), sums_x = a.take<double>(stride);
  }
  void fill() {
    const T* expand = static_cast<const T*>(p.expand);
    n1.fill(p.norm1, p.shape.c);
    e.shift = n1.shift, e.pack(expand, n1.scale, p.threads);
    for (idx c = 0; c < p.shape.c; ++c)
      for (idx i = 0; i < p.in_channels; ++i)
        scaled[c * p.in_channels + i] = expand[c * p.in_channels + i] * n1.scale[c];
    for (idx i = 0; i < e.slices.count; ++i)
      for_panels<T>(p.in_channels, e.slices.size(i), p.threads, [&](idx panel) {
        pack_rows<T>(packed_slice(i), scaled + e.slices.begin(i) * p.in_channels, p.in_channels, e.slices.size(i),
                     panel);
      });
  }
};

template <class T>
FF_INLINE idx expansion_chunks(const BottleneckParams& p, const Bands& bands) {
  constexpr idx kMost = 16, kBytes = 16 << 20;
  const idx by_bytes =
      max_idx(2, kBytes / (p.in_channels * round_up_lanes<T>(p.shape.c) * static_cast<idx>(sizeof(T))));
  return max_idx(1, min_idx(min_idx(kMost, by_bytes), bands.count));
}

// Scratch of a task.
template <class T>
struct BackwardRows {
  RowWindow<T> dy, z, a;
  T *da, *g, *sums, *sums_x;
  idx ldg;
};

// Bands [begin, end) of one image, one slice of the channels. The first slice sets dx, the others add to it.
template <class T>
FF_INLINE void backward_bands(const BottleneckBackward<T>& b, const Bands& bands, BackwardRows<T>& r, idx chunk,
                              idx slice, idx begin, idx end) {
  const BottleneckParams& p = b.p;
  const DepthwiseShape s = b.e.part(slice);
  const RowKernels<T> kernels = row_kernels<T>(s);
  const idx c = b.e.slices.begin(slice), all = p.shape.c, taps = s.kh * s.kw, image = bands.image(begin),
            halo = (s.kh - 1) / s.sh;
  const T* w = b.w + c * taps;
  T *dw = b.dw_parts + chunk * (taps + 1) * b.stride + c * taps, *part = b.parts + chunk * p.in_channels * b.stride + c;
  const NormAct<T> after{b.after.scale + c, b.after.shift + c, nullptr, b.after.act};
  const NormGrad<T> norm2{b.norm2->slope + c, b.norm2->curve + c, b.norm2->offset + c};
  r.dy = {r.dy.base, s.ow * s.c}, r.z = {r.z.base, s.w * s.c}, r.a = {r.a.base, s.w * s.c};
  for (idx band = begin; band < end; ++band) {
    const idx first = bands.first(band), last = bands.end(band);
    const idx lo = first ? input_row(s, first) : 0,
              done = last < s.oh ? input_row(s, last) : s.h;  // rows whose gradient is whole
    const idx hi = max_idx(done, input_end(s, last - 1)), count = (done - lo) * s.w;
    const idx new_dy = r.dy.advance(max_idx(0, first - halo), last), at = ((image * s.oh + new_dy) * s.ow) * all + c;
    norm_act_grad_rows<T>(r.dy.at(new_dy), s.c, b.dy + at, all, static_cast<const T*>(p.y1) + at, all,
                          (last - new_dy) * s.ow, s.c, after, norm2);
    const idx new_z = r.z.advance(lo, hi);
    r.a.advance(lo, hi);
    b.e.rows(slice, image, new_z, hi, r.z.at(new_z), r.a.at(new_z));
    fill_zero(r.sums, s.c), fill_zero(r.sums_x, s.c);
    idx y = lo;
    for (idx oy = first; oy < last; ++oy) {
      if (p.d_dw_weight) kernels.weight_grad(s, r.a.origin(), r.dy.at(oy), oy, dw);
      for (const idx stop = oy + 1 < s.oh ? input_row(s, oy + 1) : s.h; y < stop; ++y) {
        kernels.input_grad(s, r.dy.origin(), r.dy.first, last, y, w, r.da, false);
        act_grad_rows<T>(r.g + (y - lo) * s.w * r.ldg, r.ldg, r.da, s.c, r.z.at(y), s.c, s.w, s.c,
                         {nullptr, nullptr, nullptr, p.act}, r.sums, r.sums_x);
      }
    }
    if (!count) continue;
    add_to(b.sums + chunk * b.stride + c, r.sums, s.c);
    const idx pixel = (image * s.h + lo) * s.w * p.in_channels;
    T* dx = p.dx ? static_cast<T*>(p.dx) + pixel : nullptr;
    Ahead written;  // dx is fetched before it is written
    if (slice == 0) written.add(dx, count * p.in_channels * static_cast<idx>(sizeof(T)));
    if (b.crossed)
      gemm<T, true>({.a = b.e.x + pixel,
                     .lda = p.in_channels,
                     .b = r.g,
                     .ldb = r.ldg,
                     .c = part,
                     .ldc = b.stride,
                     .rows = p.in_channels,
                     .cols = s.c,
                     .depth = count,
                     .accumulate = true,
                     .ahead = &written});
    if (dx)
      gemm<T, false>({.a = r.g,
                      .lda = r.ldg,
                      .b = b.packed_slice(slice),
                      .c = dx,
                      .ldc = p.in_channels,
                      .rows = count,
                      .cols = p.in_channels,
                      .depth = s.c,
                      .accumulate = slice > 0});
  }
}

template <class T>
FF_INLINE void expand_depthwise_backward_pass(const BottleneckBackward<T>& b) {
  const BottleneckParams& p = b.p;
  const DepthwiseShape& s = p.shape;
  const Bands bands = expansion_bands<T>(s, b.e.slices);
  for_tasks(b.chunks, p.threads, [&](idx chunk) {
    const idx taps = s.kh * s.kw, halo = (s.kh - 1) / s.sh, rows = b.e.rows_in_window(bands), width = b.e.slices.width;
    BackwardRows<T> r{};
    r.ldg = block_stride<T>(width);
    Arena a(Scratch::task);
    r.dy.base = a.take<T>((bands.rows + halo) * s.ow * width);
    r.z.base = a.take<T>(rows * s.w * width), r.a.base = a.take<T>(rows * s.w * width);
    r.da = a.take<T>(s.w * width), r.g = a.take<T>(rows * s.w * r.ldg);
    r.sums = a.take<T>(width), r.sums_x = a.take<T>(width);
    fill_zero(b.dw_parts + chunk * (taps + 1) * b.stride, (taps + 1) * b.stride);
    fill_zero(b.sums + chunk * b.stride, b.stride);
    if (b.crossed) fill_zero(b.parts + chunk * p.in_channels * b.stride, p.in_channels * b.stride);
    const idx begin = bands.count * chunk / b.chunks, end = bands.count * (chunk + 1) / b.chunks;
    for (idx band = begin; band < end;) {
      const idx stop = min_idx(end, (bands.image(band) + 1) * bands.per_image);
      for (idx slice = 0; slice < b.e.slices.count; ++slice) backward_bands(b, bands, r, chunk, slice, band, stop);
      band = stop;
    }
  });
}

// norm1's vectors and the weights' gradient from the sums. Returns norm1's form.
template <class T>
FF_INLINE const NormGrad<T>* expansion_gradient(BottleneckBackward<T>& b) {
  const BottleneckParams& p = b.p;
  const idx c = p.shape.c, in = p.in_channels, pixels = p.shape.n * p.shape.h * p.shape.w;
  const T *expand = static_cast<const T*>(p.expand), *covariance = static_cast<const T*>(p.covariance),
          *m = covariance + c * in;
  const T* mean = static_cast<const T*>(p.norm1.stats);
  fold_parts(b.sums, b.chunks, b.stride, b.stride);
  const int threads = c * in < kPackParallel ? 1 : p.threads;
  const idx L = lane_count<T>();
  for_tasks(in, threads,
            [&](idx i) { norm_kernels<T>().fold_parts(b.parts + i * b.stride, b.chunks, in * b.stride, b.stride); });
  for_tasks(ceil_div(c, L), threads, [&](idx group) {
    for (idx o = group * L; o < min_idx(c, (group + 1) * L); ++o) {
      double sum = p.batch_stats ? 0 : -static_cast<double>(mean[o]) * b.sums[o];
      for (idx i = 0; i < in; ++i) {
        const double centred = b.parts[i * b.stride + o] - (p.batch_stats ? b.sums[o] * m[i] : 0);
        sum += centred * expand[o * in + i];
      }
      b.sums_x[o] = sum;
    }
  });
  const NormGrad<T>* form = b.grad1.fill(p.norm1, c, b.sums, b.sums_x, 1, b.stride, pixels, p.batch_stats);
  T* d_expand = static_cast<T*>(p.d_expand);
  if (!d_expand) return form;
  for_tasks(ceil_div(c, L), threads, [&](idx group) {
    for (idx o = group * L; o < min_idx(c, (group + 1) * L); ++o) {
      const double slope = form->slope[o], bend = static_cast<double>(form->curve[o]) * static_cast<double>(pixels);
      for (idx i = 0; i < in; ++i) {
        double grad = slope * b.parts[i * b.stride + o];
        if (p.batch_stats) grad += bend * covariance[o * in + i] - slope * b.sums[o] * m[i];
        d_expand[o * in + i] = static_cast<T>(grad);
      }
    }
  });
  return form;
}

// What the batch's statistics add to dx: (x - m)·(wᵀ·curve·w) + sum_o (offset + curve·mean)·w_o. Scratch: room for
// [c][in padded], matrix [in][in], packed, row [in].
template <class T>
struct InputCorrection {
  T *bent, *matrix, *packed, *row;

  void take(Arena& a, idx c, idx in) {
    bent = a.take<T>(c * block_stride<T>(in)), matrix = a.take<T>(in * in);
    packed = a.take<T>(packed_size<T>(in, in)), row = a.take<T>(in);
  }
  void fill(const BottleneckParams& p, const NormGrad<T>& form) const {
    const idx c = p.shape.c, in = p.in_channels, ld = block_stride<T>(in);
    const T *expand = static_cast<const T*>(p.expand), *mean = static_cast<const T*>(p.norm1.stats);
    const T* m = static_cast<const T*>(p.covariance) + c * in;
    for (idx o = 0; o < c; ++o)
      for (idx i = 0; i < in; ++i) bent[o * ld + i] = form.curve[o] * expand[o * in + i];
    constexpr idx kRows = 14;
    for_tasks(ceil_div(in, kRows), c * in * in < (1 << 20) ? 1 : p.threads, [&](idx t) {
      const idx first = t * kRows;
      gemm<T, true>({.a = expand + first,
                     .lda = in,
                     .b = bent,
                     .ldb = ld,
                     .c = matrix + first * in,
                     .ldc = in,
                     .rows = min_idx(kRows, in - first),
                     .cols = in,
                     .depth = c});
    });
    for_panels<T>(in, in, 1, [&](idx panel) { pack_rows<T>(packed, matrix, in, in, panel); });
    for (idx i = 0; i < in; ++i) {
      double sum = 0;
      for (idx o = 0; o < c; ++o)
        sum +=
            (static_cast<double>(form.offset[o]) + static_cast<double>(form.curve[o]) * mean[o]) * expand[o * in + i];
      for (idx j = 0; j < in; ++j) sum -= static_cast<double>(m[j]) * matrix[j * in + i];
      row[i] = static_cast<T>(sum);
    }
  }
};

template <class T>
FF_INLINE void correct_input_gradient(const BottleneckParams& p, const InputCorrection<T>& k) {
  const idx rows = p.shape.n * p.shape.h * p.shape.w, in = p.in_channels, block = block_rows<T>(3 * in);
  const T *x = static_cast<const T*>(p.x), *dout = static_cast<const T*>(p.dout);
  T* dx = static_cast<T*>(p.dx);
  for_tasks(ceil_div(rows, block), p.threads, [&](idx b) {
    const idx first = b * block * in, count = min_idx(block, rows - b * block);
    Ahead next;
    const idx left = min_idx(block, rows - b * block - count) * in * static_cast<idx>(sizeof(T));
    next.add(x + first + count * in, left), next.add(dx + first + count * in, left);
    if (p.batch_stats)
      gemm<T, false>({.a = x + first,
                      .lda = in,
                      .b = k.packed,
                      .c = dx + first,
                      .ldc = in,
                      .rows = count,
                      .cols = in,
                      .depth = in,
                      .bias = k.row,
                      .accumulate = true,
                      .ahead = &next});
    if (p.residual) add_rows(dx + first, dout + first, count, in);
  });
}

template <class T>
FF_INLINE void bottleneck_backward(const BottleneckParams& p) {
  const DepthwiseShape& s = p.shape;
  const idx taps = s.kh * s.kw, pixels = s.n * s.oh * s.ow, stride = round_up_lanes<T>(s.c);
  const idx chunks2 = backward_chunks<T>(pixels, s.c, p.out_channels ? p.out_channels : 1);
  const T *dout = static_cast<const T*>(p.dout), *y1 = static_cast<const T*>(p.y1);
  const bool params = p.d_expand != nullptr;
  BottleneckBackward<T> b{};
  b.p = p, b.e = expansion_of<T>(p), b.stride = stride;
  b.chunks = expansion_chunks<T>(p, expansion_bands<T>(s, b.e.slices)), b.crossed = params || p.batch_stats;
  const Wide v3{pixels, p.out_channels, 1}, v2{pixels, s.c, 1};
  Arena a(Scratch::shared);
  NormBackward<T> norm3, norm2;
  NormGradVectors<T> grad2;
  InputCorrection<T> correction{};
  b.take(a), norm2.take(a, p.norm2, s.c, v2), norm3.take(a, p.norm3, p.out_channels, v3), grad2.take(a, p.norm2, s.c);
  correction.take(a, s.c, p.in_channels);
  double* sums2 = a.take<double>(p.out_channels ? 2 * chunks2 * stride : 0);
  T *g = a.take<T>(p.out_channels ? pixels * s.c : 0), *w = a.take<T>(taps * stride);
  PointwiseBackward<T> projection{};
  projection.rows = pixels, projection.in = s.c, projection.out = p.out_channels, projection.threads = p.threads;
  projection.g = g, projection.dw = static_cast<T*>(p.d_project);
  b.fill(), pack_depthwise<T>(w, static_cast<const T*>(p.dw_weight), nullptr, s.c, taps), b.w = w;
  if (p.out_channels) {
    norm3.run(p.norm3, p.out_channels, v3, dout, static_cast<const T*>(p.y2), Act::none, p.batch_stats, p.threads);
    norm2.n.fill(p.norm2, s.c);
    projection.x = y1, projection.norm1 = norm2.norm_act(p.act), projection.w = static_cast<const T*>(p.project);
    projection.dz = dout, projection.y = static_cast<const T*>(p.y2), projection.after = norm3.norm_act(Act::none);
    projection.norm2 = norm3.form, projection.sum_g = sums2, projection.sum_gx = sums2 + chunks2 * stride;
    pointwise_backward_pass(projection, a);
    b.norm2 = grad2.fill(p.norm2, s.c, sums2, sums2 + chunks2 * stride, chunks2, stride, pixels, p.batch_stats);
    b.dy = g, b.after = norm2.norm_act(Act::none);
  } else {
    norm2.run(p.norm2, s.c, v2, dout, y1, p.act, p.batch_stats, p.threads);
    b.norm2 = norm2.form, b.dy = dout, b.after = norm2.norm_act(p.act);
  }
  expand_depthwise_backward_pass(b);
  if (p.d_dw_weight)
    store_depthwise_grad(b.dw_parts, b.chunks, s, static_cast<T*>(p.d_dw_weight), static_cast<T*>(nullptr));
  if (b.crossed) {
    const NormGrad<T>* form = expansion_gradient(b);
    if (p.dx && p.batch_stats) correction.fill(p, *form);
  }
  if (p.dx && (p.batch_stats || p.residual)) correct_input_gradient(p, correction);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
