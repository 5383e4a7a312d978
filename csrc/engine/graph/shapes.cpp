// SPDX-License-Identifier: Apache-2.0
// What each operation makes of its inputs' shapes, and whether its parts fit them. The only place that knows: Python
// asks for it through the binding.
#include "engine/graph/graph.h"
#include "engine/graph/tensor_shapes.h"

namespace ff::engine {
namespace graph {
namespace {

Shape shape_of(const Conv& op, const Inputs& in) {
  const Shape& x = in[0];
  const idx outputs = in.length("bias", op.bias);
  if (x.channels % op.groups || outputs % op.groups)
    in.fail("groups", "a divisor of the channels of input and output",
            std::to_string(op.groups) + " for " + std::to_string(x.channels) + " and " + std::to_string(outputs));
  const Shape y = in.slide(op.sliding, static_cast<int>(outputs));
  in.count("weight", op.weight, outputs * (x.channels / op.groups) * op.sliding.window.kh * op.sliding.window.kw);
  return y;
}

Shape shape_of(const DilatedConv& op, const Inputs& in) { return shape_of(op.conv, in); }
Shape shape_of(const MaxPool& op, const Inputs& in) { return in.slide(op.sliding, in[0].channels); }
Shape shape_of(const AvgPool& op, const Inputs& in) { return in.slide(op.sliding, in[0].channels); }
Shape shape_of(const GlobalPool&, const Inputs& in) { return {in[0].channels, 1, 1}; }
Shape shape_of(const Add&, const Inputs& in) { return in.repeated(); }
Shape shape_of(const Mul&, const Inputs& in) { return in.repeated(); }
Shape shape_of(const Activate&, const Inputs& in) { return in[0]; }
Shape shape_of(const Affine& op, const Inputs& in) {
  in.count("scale", op.scale, in[0].channels), in.count("shift", op.shift, in[0].channels);
  return in[0];
}

Shape shape_of(const Concat&, const Inputs& in) {
  const Shape& first = in[0];
  idx channels = 0;
  for (size_t i = 0; i < in.shapes.size(); ++i) {
    if (in[i].height != first.height || in[i].width != first.width)
      in.fail("input " + std::to_string(i), "the size of " + text(first), text(in[i]));
    channels += in[i].channels;
  }
  if (channels > kMostLength) in.fail("channels", "at most " + std::to_string(kMostLength), std::to_string(channels));
  return {static_cast<int>(channels), first.height, first.width};
}

Shape shape_of(const ChannelPool& op, const Inputs& in) { return {op.order < 2 ? 2 : 1, in[0].height, in[0].width}; }
Shape shape_of(const LinePool& op, const Inputs& in) {
  return op.columns ? Shape{in[0].channels, 1, in[0].width} : Shape{in[0].channels, in[0].height, 1};
}
Shape shape_of(const Cbam& op, const Inputs& in) {
  in.mlp(op.mlp), in.spatial(op.spatial, in.taps(op.kh, op.kw));
  return in[0];
}
Shape shape_of(const Se& op, const Inputs& in) {
  in.mlp(op.mlp);
  return in[0];
}
Shape shape_of(const Eca& op, const Inputs& in) {
  in.odd("weight", op.weight);
  return in[0];
}
Shape shape_of(const Scse& op, const Inputs& in) {
  in.mlp(op.mlp), in.spatial(op.spatial, in[0].channels);
  return in[0];
}
Shape shape_of(const Sa& op, const Inputs& in) {
  in.spatial(op.spatial, in.taps(op.kh, op.kw));
  return in[0];
}

Shape shape_of(const Csa& op, const Inputs& in) {
  const Shape& x = in[0];
  in.odd("weight", op.weight), in.spatial(op.spatial, 2);
  if (!op.pool) return x;
  if (x.height < 2 || x.width < 2) in.fail("input", "at least 2x2 pixels to pool", text(x));
  return {x.channels, x.height / 2, x.width / 2};
}

Shape shape_of(const Coordinate& op, const Inputs& in) {
  const idx c = in[0].channels, m = in.length("bias", op.bias);
  in.count("weight", op.weight, m * c);
  in.count("rows", op.rows, m * c), in.count("rows_bias", op.rows_bias, c);
  in.count("columns", op.columns, m * c), in.count("columns_bias", op.columns_bias, c);
  return in[0];
}

Shape shape_of(const DotAttention& op, const Inputs& in) {
  const Shape &q = in[0], &kv = in[1];
  if (q.channels != kv.channels) in.fail("second input", std::to_string(q.channels) + " channels", text(kv));
  in.count("scale", op.scale, 1);
  return op.mean ? Shape{q.channels, 1, 1} : q;
}

Shape shape_of(const AdditiveAttention& op, const Inputs& in) {
  if (!same(in[0], in[1])) in.fail("second input", text(in[0]), text(in[1]));
  const idx d = in[0].channels, e = in.length("bias", op.bias);
  in.count("weight", op.weight, e * 2 * d), in.count("score", op.score, e), in.count("score_bias", op.score_bias, 1);
  return {in[0].channels, 1, 1};
}

template <class T, class = void>
struct IsFileOp : std::false_type {};
template <class T>
struct IsFileOp<T, std::void_t<decltype(T::kOp)>> : std::true_type {};

}  // namespace
}  // namespace graph

Shape output_shape(const graph::AnyOp& op, const std::vector<Shape>& shapes, const std::string& where) {
  return std::visit(
      [&](const auto& one) -> Shape {
        using T = std::decay_t<decltype(one)>;
        if constexpr (graph::IsFileOp<T>::value) {
          const std::string whole = where.empty() ? std::string(T::kName) + ": " : where + " (" + T::kName + "): ";
          const graph::Inputs in{shapes, whole};
          if (T::kInputs == graph::kMany ? shapes.empty() : shapes.size() != static_cast<size_t>(T::kInputs))
            in.fail("number of inputs", T::kInputs == graph::kMany ? "1 or more" : std::to_string(T::kInputs),
                    std::to_string(shapes.size()));
          return graph::shape_of(one, in);
        } else {
          throw std::invalid_argument(where + ": expected an operation of a file");
        }
      },
      op);
}

}  // namespace ff::engine
