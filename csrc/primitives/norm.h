// SPDX-License-Identifier: Apache-2.0
// Passes over rows of channels, [rows][stride] of one pixel each: normalisation and activation, forward and backward,
// and the sums that both need. Per-channel vectors have room for a whole last vector.
#pragma once
#include "core/inline.h"

namespace ff {

// A normalisation and activation as their backward needs them; scale null: no normalisation, z = y.
template <class T>
struct NormAct {
  const T *scale, *shift, *mean;
  Act act;
};

// The normalisation's backward is affine in (g, y): dy = slope·g + curve·y + offset.
template <class T>
struct NormGrad {
  const T *slope, *curve, *offset;
};

// One ISA's passes.
template <class T>
struct NormKernels {
  // dst = act(src·scale + shift); scale null: act(src). dst may be src. `streamed`: past the caches, see streamable().
  void (*affine_act)(T* dst, idx dst_stride, const T* src, idx src_stride, idx rows, idx channels, const T* scale,
                     const T* shift, Act act, bool streamed);
  // Mean and sum of squared deviations of each channel over the rows, in one read. With `copy` not null the rows are
  // written there, past the caches.
  void (*moments)(const T* src, idx stride, idx rows, idx channels, T* mean, T* m2, T* copy, idx copy_stride);
  // Adds the column sums of g to sum_g.
  void (*sums)(const T* g, idx stride, idx rows, idx channels, T* sum_g);
  // g = dz·act'(z); with g not null it is written (it may be dz), with `scaled` times scale; with sum_g not null the
  // column sums of g and of g·(y - mean) are added to sum_g and sum_gx.
  void (*act_grad)(T* g, idx g_stride, const T* dz, idx dz_stride, const T* y, idx y_stride, idx rows, idx channels,
                   const NormAct<T>& norm, T* sum_g, T* sum_gx, bool streamed, bool scaled);
  // dst = slope·g + curve·y + offset with g = dz·act'(y·scale + shift). dst may be dz.
  void (*norm_act_grad)(T* dst, idx dst_stride, const T* dz, idx dz_stride, const T* y, idx y_stride, idx rows,
                        idx channels, const NormAct<T>& norm, const NormGrad<T>& grad);
  // to += x.
  void (*add)(T* to, const T* x, idx n);
  // to = 0 + the first part + the second ..., parts [count][stride].
  void (*sum_parts)(T* to, const T* parts, idx count, idx stride, idx n);
  // Adds parts [count][stride] in order into the first one.
  void (*fold_parts)(T* values, idx count, idx stride, idx n);
  // out[g][j] = sum_i w[g][i]·rows[i][j] for four rows of weights; out and rows have `stride` elements a row.
  void (*weighted_rows)(double* out, const T* const* w, const double* rows, idx count, idx stride);
  // After writes past the caches.
  void (*fence)();
};

}  // namespace ff
