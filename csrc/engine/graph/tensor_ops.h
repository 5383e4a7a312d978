// SPDX-License-Identifier: Apache-2.0
// Operations on maps as plain tensors (C, H, W): moving elements, element by element, reductions, products.
#pragma once
#include "engine/graph/fields.h"

namespace ff::engine::graph {

constexpr int kGatherDims = 8;

// y's elements in (C, H, W) order run through the dimensions n[0] × … × n[7]; the element at (i0, …, i7) is x's element
// number Σ index_d[i_d]·stride[d], or `fill` where any of the indices is negative. `index` holds index_0, then index_1
// …
struct Gather {
  static constexpr Op kOp = Op::gather;
  static constexpr const char* kName = "gather";
  static constexpr int kInputs = 1;
  int channels, height, width;
  int n[kGatherDims], stride[kGatherDims];
  Weights index, fill;
  template <class V>
  void fields(V& v) {
    v.number("channels", channels, 1, kMostChannels), v.number("height", height, 1, kMostChannels);
    v.number("width", width, 1, kMostChannels);
    static constexpr const char* kN[] = {"n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7"};
    static constexpr const char* kStride[] = {"s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7"};
    for (int d = 0; d < kGatherDims; ++d) v.number(kN[d], n[d], 1, 1 << 28);
    for (int d = 0; d < kGatherDims; ++d) v.number(kStride[d], stride[d], 0, 1 << 28);
    v.weights("index", index), v.weights("fill", fill);
  }
};

// values (C, H, W), the same for every image.
struct Constant {
  static constexpr Op kOp = Op::constant;
  static constexpr const char* kName = "constant";
  static constexpr int kInputs = 0;
  int channels, height, width;
  Weights values;
  template <class V>
  void fields(V& v) {
    v.number("channels", channels, 1, kMostChannels), v.number("height", height, 1, kMostChannels);
    v.number("width", width, 1, kMostChannels), v.weights("values", values);
  }
};

// Along the height (axis 1) or the width (2).
struct Join {
  static constexpr Op kOp = Op::join;
  static constexpr const char* kName = "join";
  static constexpr int kInputs = kMany;
  int axis;
  template <class V>
  void fields(V& v) {
    v.number("axis", axis, 1, 2);
  }
};

// A function of each element; a and b as engine::UnaryOp says, one value for all channels or one each.
struct Unary {
  static constexpr Op kOp = Op::unary;
  static constexpr const char* kName = "unary";
  static constexpr int kInputs = 1;
  UnaryOp function;
  Weights a, b;
  template <class V>
  void fields(V& v) {
    v.choice("function", function, UnaryOp::count), v.weights("a", a), v.weights("b", b);
  }
};

// A function of the elements of two maps; each axis of either is the other's or 1.
struct Binary {
  static constexpr Op kOp = Op::binary;
  static constexpr const char* kName = "binary";
  static constexpr int kInputs = 2;
  BinaryOp function;
  template <class V>
  void fields(V& v) {
    v.choice("function", function, BinaryOp::count);
  }
};

// condition ? a : b, where a condition is any number but 0; axes repeat as those of binary.
struct Select {
  static constexpr Op kOp = Op::select;
  static constexpr const char* kName = "select";
  static constexpr int kInputs = 3;
  template <class V>
  void fields(V&) {}
};

// Axes over which an operation goes.
struct Axes {
  bool channels, height, width;
  template <class V>
  void fields(V& v) {
    v.flag("over_channels", channels), v.flag("over_height", height), v.flag("over_width", width);
  }
};

// Over axes, which then have length 1; `correction` is taken off the count of a variance.
struct Reduce {
  static constexpr Op kOp = Op::reduce;
  static constexpr const char* kName = "reduce";
  static constexpr int kInputs = 1;
  ReduceOp function;
  Axes axes;
  Weights correction;
  template <class V>
  void fields(V& v) {
    v.choice("function", function, ReduceOp::count), axes.fields(v), v.weights("correction", correction);
  }
};

struct Softmax {
  static constexpr Op kOp = Op::softmax;
  static constexpr const char* kName = "softmax";
  static constexpr int kInputs = 1;
  bool log;
  Axes axes;
  template <class V>
  void fields(V& v) {
    v.flag("log", log), axes.fields(v);
  }
};

// Pixel (i, j) of a new size: the sum over k, l of rows_weight[i][k]·columns_weight[j][l]·x(rows[i][k], columns[j][l]),
// or the largest of these pixels; taps whose row or column is negative are left out.
struct Resample {
  static constexpr Op kOp = Op::resample;
  static constexpr const char* kName = "resample";
  static constexpr int kInputs = 1;
  bool maximum;
  int height, width, row_taps, column_taps;
  Weights rows, rows_weight, columns, columns_weight;
  template <class V>
  void fields(V& v) {
    v.flag("kind", maximum);
    v.number("height", height, 1, kMostChannels), v.number("width", width, 1, kMostChannels);
    v.number("row_taps", row_taps, 1, kMostChannels), v.number("column_taps", column_taps, 1, kMostChannels);
    v.weights("rows", rows), v.weights("rows_weight", rows_weight);
    v.weights("columns", columns), v.weights("columns_weight", columns_weight);
  }
};

// (x - mean) / sqrt(variance + eps) · scale + shift: statistics of each group of channels over the image, or of each
// pixel's. scale and shift are one a channel.
struct Normalise {
  static constexpr Op kOp = Op::normalise;
  static constexpr const char* kName = "normalise";
  static constexpr int kInputs = 1;
  int groups;
  bool by_pixel;
  Weights scale, shift, eps;
  template <class V>
  void fields(V& v) {
    v.number("groups", groups, 1, kMostChannels), v.flag("by_pixel", by_pixel);
    v.weights("scale", scale), v.weights("shift", shift), v.weights("eps", eps);
  }
};

// a (K, B, M) · b (N, B or 1, K) -> (N, B, M): rows of the image are separate products, pixels are rows of a matrix and
// channels its columns.
struct MatMul {
  static constexpr Op kOp = Op::matmul;
  static constexpr const char* kName = "matmul";
  static constexpr int kInputs = 2;
  template <class V>
  void fields(V&) {}
};

// x (C, H, W) at the places (x, y) of each pixel of a grid (2, I, J): -1 and 1 are the middles of the first and last
// pixel with `corners`, else the edges of the map. (C, I, J).
struct Sample {
  static constexpr Op kOp = Op::sample;
  static constexpr const char* kName = "sample";
  static constexpr int kInputs = 2;
  Sampling sampling;
  Outside outside;
  bool corners;
  template <class V>
  void fields(V& v) {
    v.choice("sampling", sampling, Sampling::count), v.choice("outside", outside, Outside::count);
    v.flag("corners", corners);
  }
};

}  // namespace ff::engine::graph
