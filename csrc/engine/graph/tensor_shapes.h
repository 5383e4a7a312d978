// SPDX-License-Identifier: Apache-2.0
// The shapes of tensor_ops.h.
#pragma once
#include <algorithm>

#include "engine/graph/inputs.h"

namespace ff::engine::graph {
namespace {

idx product(const Shape& s) { return idx{s.channels} * s.height * s.width; }

Shape shape_of(const Gather& op, const Inputs& in) {
  const Shape y{op.channels, op.height, op.width};
  idx count = 1, indices = 0;
  for (int d = 0; d < kGatherDims; ++d) {
    indices += op.n[d], count *= op.n[d];
    if (count > kMostLength) in.fail("dimensions", "at most " + std::to_string(kMostLength) + " elements", "more");
  }
  // The product of three extents may not fit: one by one.
  if (idx{y.height} * y.width > kMostLength || product(y) != count)
    in.fail("dimensions", "the elements of the output " + text(y), std::to_string(count));
  in.count("index", op.index, indices), in.count("fill", op.fill, 1);
  return y;
}

Shape shape_of(const Constant& op, const Inputs& in) {
  const Shape y{op.channels, op.height, op.width};
  if (idx{y.height} * y.width > kMostLength) in.fail("height and width", "fewer pixels", text(y));
  in.count("values", op.values, product(y));
  return y;
}

Shape shape_of(const Join& op, const Inputs& in) {
  Shape y = in[0];
  idx length = 0;
  for (size_t i = 0; i < in.shapes.size(); ++i) {
    const Shape& x = in[i];
    const bool same_other = op.axis == 1 ? x.width == y.width : x.height == y.height;
    if (x.channels != y.channels || !same_other) in.fail("input " + std::to_string(i), "what fits " + text(y), text(x));
    length += op.axis == 1 ? x.height : x.width;
  }
  if (length > kMostChannels) in.fail("length", "at most " + std::to_string(kMostChannels), std::to_string(length));
  (op.axis == 1 ? y.height : y.width) = static_cast<int>(length);
  return y;
}

Shape shape_of(const Unary& op, const Inputs& in) {
  for (const Weights* w : {&op.a, &op.b})
    if (w->count != 1) in.count(w == &op.a ? "a" : "b", *w, in[0].channels);
  return in[0];
}

// What maps have together when axes of length 1 are repeated.
Shape repeated(const Inputs& in) {
  Shape y = in[0];
  const auto join = [&](int one, int other, const Shape& x) {
    if (one != other && one != 1 && other != 1) in.fail("input", "axes of " + text(y) + " or 1", text(x));
    return std::max(one, other);
  };
  for (const Shape& x : in.shapes)
    y = {join(y.channels, x.channels, x), join(y.height, x.height, x), join(y.width, x.width, x)};
  return y;
}
Shape shape_of(const Binary&, const Inputs& in) { return repeated(in); }
Shape shape_of(const Select&, const Inputs& in) { return repeated(in); }

Shape shape_of(const Reduce& op, const Inputs& in) {
  in.count("correction", op.correction, 1);
  const Shape& x = in[0];
  return {op.axes.channels ? 1 : x.channels, op.axes.height ? 1 : x.height, op.axes.width ? 1 : x.width};
}
Shape shape_of(const Softmax&, const Inputs& in) { return in[0]; }

Shape shape_of(const Resample& op, const Inputs& in) {
  const auto counted = [&](const char* name, const Weights& w, int length, int taps) {
    if (idx{length} * taps > kMostLength) in.fail(name, "fewer taps", std::to_string(idx{length} * taps));
    in.count(name, w, idx{length} * taps);
  };
  counted("rows", op.rows, op.height, op.row_taps), counted("rows_weight", op.rows_weight, op.height, op.row_taps);
  counted("columns", op.columns, op.width, op.column_taps),
      counted("columns_weight", op.columns_weight, op.width, op.column_taps);
  return {in[0].channels, op.height, op.width};
}

Shape shape_of(const Normalise& op, const Inputs& in) {
  const Shape& x = in[0];
  if (op.by_pixel && op.groups != 1) in.fail("groups", "1 of a pixel", std::to_string(op.groups));
  if (x.channels % op.groups) in.fail("groups", "a divisor of the channels of " + text(x), std::to_string(op.groups));
  in.count("scale", op.scale, x.channels), in.count("shift", op.shift, x.channels), in.count("eps", op.eps, 1);
  return x;
}

Shape shape_of(const MatMul&, const Inputs& in) {
  const Shape &a = in[0], &b = in[1];
  if (b.width != a.channels || (b.height != a.height && b.height != 1))
    in.fail("second input", "(N, " + std::to_string(a.height) + " or 1, " + std::to_string(a.channels) + ")", text(b));
  return {b.channels, a.height, a.width};
}

Shape shape_of(const Sample&, const Inputs& in) {
  if (in[1].channels != 2) in.fail("second input", "a grid of 2 channels", text(in[1]));
  return {in[0].channels, in[1].height, in[1].width};
}

}  // namespace
}  // namespace ff::engine::graph
