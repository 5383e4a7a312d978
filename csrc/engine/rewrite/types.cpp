// SPDX-License-Identifier: Apache-2.0
// Low precision: which values are kept as bfloat16 or bytes. Dense convolutions read these; depthwise ones read and
// both write any type; everything else is float32. A value is low where its maker can write it so and every reader
// takes it so.
#include <algorithm>
#include <stdexcept>

#include "engine/rewrite/rewrite.h"

namespace ff::engine {
namespace {

constexpr int kMostByteOutputs = 2048;  // of a convolution of bytes

bool in_registers(Act act) { return act != Act::silu && act != Act::sigmoid; }

class Types {
 public:
  Types(const Graph& graph, const Target& target)
      : graph_(graph), target_(target), low_(graph.values.size()), wanted_(low_), dense_(low_) {}

  std::vector<Type> run() {
    for (const Node& node : graph_.nodes) std::visit([&](const auto& op) { makes(node, op); }, node.op);
    for (const int output : graph_.outputs) low_[at(output)] = false;
    for (size_t v = 0; v < low_.size() && target_.type == Type::uint8; ++v)
      if (taken_as(graph_, static_cast<int>(v), target_) == Type::float32) low_[v] = false;
    for (const Node& node : graph_.nodes)
      // What is added to bytes is bytes, too, so it needs a range.
      if (target_.type == Type::uint8 && node.residual >= 0 && !graph_.fits_bytes(node.residual) &&
          graph_.fits_bytes(node.output))
        low_[at(node.output)] = false;
    for (const Node& node : graph_.nodes) {
      std::visit([&](const auto& op) { reads(node, op); }, node.op);
      if (node.residual < 0) continue;
      // Convolutions add what is of their output's type, everything else float32.
      if (std::holds_alternative<graph::Conv>(node.op) || std::holds_alternative<graph::Strips>(node.op))
        wanted_[at(node.residual)] = true;
      else
        low_[at(node.residual)] = false;
    }
    std::vector<Type> types(low_.size(), Type::float32);
    for (size_t v = 0; v < low_.size(); ++v)
      // Between a depthwise convolution and another nothing is gained.
      if (low_[v] && (wanted_[v] || dense_[v])) types[v] = taken_as(graph_, static_cast<int>(v), target_);
    return types;
  }

 private:
  static size_t at(int value) { return static_cast<size_t>(value); }
  bool is_low(const graph::Conv& conv, int input, int output) const {
    return computes_low(conv, taken_as(graph_, input, target_), graph_.shape(output));
  }

  template <class T>
  void makes(const Node&, const T&) {}
  void makes(const Node& node, const graph::Conv& conv) {
    made(conv, is_low(conv, node.inputs[0], node.output), node.output, node.after, node.residual >= 0);
  }
  void makes(const Node& node, const graph::Strips& strips) {
    const auto& last = strips.project ? *strips.project : *strips.depthwise;
    made(last.op, is_low(last.op, last.input, last.output), node.output, node.after, node.residual >= 0);
    // What the depthwise convolution reads within the strip. What it writes there is as its reader takes it.
    if (strips.expand)
      made(strips.expand->op, is_low(strips.expand->op, strips.expand->input, strips.expand->output),
           strips.expand->output, Act::none, false);
  }
  void made(const graph::Conv& conv, bool low, int output, Act after, bool sum) {
    low_[at(output)] = writes_low(conv, low, after), dense_[at(output)] = low && !sum;
  }

  template <class T>
  void reads(const Node& node, const T& op) {
    for (const int input : node.inputs) by(input, takes_any(op), false);
  }
  void reads(const Node& node, const graph::Conv& conv) {
    by(node.inputs[0], is_low(conv, node.inputs[0], node.output), conv.depthwise());
  }
  void reads(const Node& node, const graph::Strips& strips) {
    const auto& first = strips.expand ? *strips.expand : strips.depthwise ? *strips.depthwise : *strips.project;
    by(node.inputs[0], is_low(first.op, first.input, first.output), first.op.depthwise());
  }
  // Gates whose product is left to a strip: it takes the map in any type.
  template <class T>
  static bool takes_any(const T&) {
    return false;
  }
  static bool takes_any(const graph::Se& op) { return op.by_reader; }
  static bool takes_any(const graph::Eca& op) { return op.by_reader; }
  static bool takes_any(const graph::Coordinate& op) { return op.by_reader; }

  // Somebody reads a value: is glad of a low one, or can read it all the same.
  void by(int value, bool wants, bool can) {
    if (wants) wanted_[at(value)] = true;
    if (!wants && !can) low_[at(value)] = false;
  }

  const Graph& graph_;
  const Target& target_;
  std::vector<bool> low_, wanted_, dense_;
};

}  // namespace

Type taken_as(const Graph& graph, int value, const Target& target) {
  if (value == graph.input) return Type::float32;
  if (target.type != Type::uint8 || graph.fits_bytes(value)) return target.type;
  return graph.stays_half(value) ? Type::bfloat16 : Type::float32;
}

bool computes_low(const graph::Conv& conv, Type taken, const Shape& y) {
  return taken != Type::float32 && conv.groups == 1 && y.height * y.width > 1 &&
         (taken == Type::bfloat16 || y.channels <= kMostByteOutputs);
}

bool writes_low(const graph::Conv& conv, bool computes_low, Act after) {
  return (computes_low || conv.depthwise()) && in_registers(conv.act) && in_registers(after);
}

std::vector<Type> value_types(const Graph& graph, const Target& target) {
  if (target.type == Type::float32) return std::vector<Type>(graph.values.size(), Type::float32);
  if (target.type == Type::uint8 && graph.ranges.empty())
    throw std::invalid_argument(
        "EnginePlan: dtype: int8 needs the ranges of the values, which this file does not have: calibrate first");
  return Types(graph, target).run();
}

}  // namespace ff::engine
