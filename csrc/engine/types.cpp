// SPDX-License-Identifier: Apache-2.0
// Low precision: which values are kept as bfloat16 or bytes. Dense convolutions read these; depthwise ones read and both
// write any type; everything else is float32. A value is low where its maker can write it so and every reader takes it so.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "engine/builder.h"

namespace ff::engine {
namespace {

constexpr int kMostByteOutputs = 2048;  // of a convolution of bytes

bool in_epilogue(int act) { return static_cast<Act>(act) != Act::silu && static_cast<Act>(act) != Act::sigmoid; }

}  // namespace

// A dense convolution that computes in the plan's type; vectors are not worth it.
bool Builder::is_low(int i) const {
  if (options_.type == Type::float32 || i < 0) return false;
  const Node& node = node_at(i);
  const Shape& y = graph_.values[static_cast<size_t>(node.output)];
  return node.op == Op::conv && node.attrs[8] == 1 && node.inputs[0] != image_ && y.height * y.width > 1 &&
         (options_.type == Type::bfloat16 || y.channels <= kMostByteOutputs);
}

// Whether the kernel that runs a convolution can write anything but float32. Its last activation is then in registers.
bool Builder::writes_low(int i) const {
  const Node& node = node_at(i);
  const Sum& sum = sums_[static_cast<size_t>(i)];
  return node.op == Op::conv && (is_low(i) || node.attrs[8] > 1) && in_epilogue(node.attrs[9]) && in_epilogue(static_cast<int>(sum.act));
}

void Builder::find_types() {
  types_.assign(graph_.values.size(), Type::float32);
  if (options_.type == Type::float32) return;
  if (!k_.low_precision)
    throw std::invalid_argument("EnginePlan: dtype: bfloat16 and int8 need AVX-512 with BF16 and VNNI, which the instruction set in use has not");
  if (options_.type == Type::uint8 && graph_.ranges.empty())
    throw std::invalid_argument("EnginePlan: dtype: int8 needs the ranges of the values, which this file has not: calibrate first");
  std::vector<bool> low(graph_.values.size()), wanted(graph_.values.size());
  const auto index = [](int i) { return static_cast<size_t>(i); };
  for (int i = 0; i < static_cast<int>(graph_.nodes.size()); ++i) {
    const Sum& sum = sums_[index(i)];
    if (writes_low(i)) low[index(sum.output < 0 ? node_at(i).output : sum.output)] = true;
  }
  for (const int node : planar_) low[index(node_at(node).output)] = false;
  for (const int output : graph_.outputs) low[index(output)] = false;
  for (int i = 0; i < static_cast<int>(graph_.nodes.size()); ++i) {
    const Node& node = node_at(i);
    if (node.op == Op::add && done_[index(i)]) continue;  // what it reads is read by who makes the sum, below
    const bool takes = is_low(i) || deferred_[index(i)];
    const int other = sums_[index(i)].other;
    if (other >= 0) (node.op == Op::conv ? wanted : low)[index(other)] = node.op == Op::conv;
    for (const int input : node.inputs) {
      if (takes) wanted[index(input)] = true;
      if (!takes && !(node.op == Op::conv && node.attrs[8] > 1)) low[index(input)] = false;
    }
  }
  for (size_t v = 0; v < low.size(); ++v) {
    const int reader = reader_[v];
    // Between a depthwise convolution and another nothing is gained.
    if (low[v] && (wanted[v] || (reader >= 0 && producer_[v] >= 0 && is_low(producer_[v])))) types_[v] = options_.type;
  }
}

Quant Builder::quant_of(int value, Type type) const {
  if (type != Type::uint8) return {};
  const Range& r = graph_.ranges[static_cast<size_t>(value)];
  const float least = std::min(r.least, 0.f), most = std::max(r.most, 0.f);
  const float scale = most > least ? std::max(most / 255.f - least / 255.f, 1e-30f) : 1.f;
  return {scale, 1.f / scale, std::min(255.f, std::max(0.f, std::round(-least / scale)))};
}

// Every step takes its maps through here: what it reads is then of the type that it expects, whatever find_types chose.
Slot Builder::read(int id, Type type) {
  const Slot slot = value(id);
  if (slot.type == type) return slot;
  Slot& other = converted_[static_cast<size_t>(id)];
  if (other.buffer >= 0) return other;
  other = new_slot({slot.channels, slot.height, slot.width}, slot.top, slot.left, slot.bottom, slot.right, type, quant_of(id, type));
  const Slot to = other;
  add("convert", slot, to, {}, [=, &k = k_](const Frame&, const Map& x, const Map& y, Part part) {
    k.convert(x, slot.type, slot.quant, y, to.type, to.quant, part);
  });
  return to;
}

}  // namespace ff::engine
