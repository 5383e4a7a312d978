// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution by rows of the image, channels innermost.
#pragma once
#include "separable_conv/op.h"

namespace ff {

// Output row oy of image x [h][w][c] into y [ow][y_stride].
template <class T>
using ForwardRow = void (*)(const DepthwiseShape& s, const T* x, idx oy, const T* w, const T* bias, T* y, idx y_stride,
                            T lo, T hi);
// Row y of dx [w][c] from dy, whose row oy stands at dy + oy·ow·c (rows outside [oy_first, oy_end) count as zero).
template <class T>
using InputGradRow = void (*)(const DepthwiseShape& s, const T* dy, idx oy_first, idx oy_end, idx y, const T* w, T* dx,
                              bool stream);
// Adds to dw (packed as the weights) what row oy of dy ([ow][c]) contributes.
template <class T>
using WeightGradRow = void (*)(const DepthwiseShape& s, const T* x, const T* dy_row, idx oy, T* dw);

template <class T>
struct RowKernels {
  ForwardRow<T> forward;
  InputGradRow<T> input_grad;
  WeightGradRow<T> weight_grad;
};

// One ISA's rows. Weights are packed as [C / lanes][taps][lanes], zeros in the last vector: a vector's taps are
// neighbours.
template <class T>
struct DepthwiseKernels {
  RowKernels<T> (*rows)(const DepthwiseShape& s);
  // Weights [C][taps], times scale[c] where there is one.
  void (*pack)(T* packed, const T* w, const T* scale, idx channels, idx taps);
  // The other way: a gradient.
  void (*unpack)(T* w, const T* packed, idx channels, idx taps);
};

}  // namespace ff
