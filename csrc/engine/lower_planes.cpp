// SPDX-License-Identifier: Apache-2.0
// The start of a network whose maps have few channels and many pixels: planes instead of blocks that would be half empty.
#include <algorithm>

#include "engine/builder.h"

namespace ff::engine {
namespace {

constexpr int kFewChannels = 8;
constexpr int kLine = 16;  // floats of a cache line

Planes planes_of(const Slot& s, const Frame& f) {
  return {f.buffer(s) + s.origin, s.channels, s.height, s.width, s.row, s.block};
}

}  // namespace

// Convolutions of stride 1 from the image on, each the only reader of the one before, and a CBAM behind them.
void Builder::find_planes() {
  const auto fits = [&](int i) {
    if (i < 0) return false;
    const Node& node = node_at(i);
    const auto& a = node.attrs;
    const Shape &x = graph_.values[static_cast<size_t>(node.inputs[0])], &y = graph_.values[static_cast<size_t>(node.output)];
    return node.op == Op::conv && a[2] == 1 && a[3] == 1 && a[8] == 1 && std::max(x.channels, y.channels) <= kFewChannels &&
           y.width >= 2 * k_.lanes && std::max(a[5], a[7]) <= kLine && sums_[static_cast<size_t>(i)].output < 0;
  };
  if (k_.lanes < kFewChannels || options_.apart) return;
  std::vector<int> nodes;
  for (int i = only_reader(image_); fits(i); i = only_reader(node_at(i).output)) nodes.push_back(i);
  if (nodes.empty()) return;
  const int behind = only_reader(node_at(nodes.back()).output);
  if (behind >= 0 && node_at(behind).op == Op::cbam && sums_[static_cast<size_t>(behind)].output < 0) nodes.push_back(behind);
  if (nodes.size() < 2) return;
  planar_ = nodes;
  for (size_t i = 0; i + 1 < nodes.size(); ++i) done_[static_cast<size_t>(nodes[i])] = true;
}

// A border for what a convolution reads; rows start on cache lines, and the border of two rows is shared.
Slot Builder::bordered_planes(const Shape& shape, const Node* reader) {
  const bool read = reader && reader->op == Op::conv;
  Slot s{-1, 1, 0, shape.channels, shape.height, shape.width, 0, 0, 0, kLine, 0, 0, Type::float32, {}};
  if (read) s.top = reader->attrs[4], s.bottom = reader->attrs[6] + 1;
  const int width = (shape.width + kLine - 1) / kLine * kLine;
  s.right = width - shape.width, s.row = kLine + width;
  s.block = s.row * (s.top + shape.height + s.bottom);
  s.origin = s.top * s.row + kLine;
  s.buffer = new_buffer(static_cast<size_t>(s.block) * static_cast<size_t>(shape.channels) + kPlaneSlack);
  return s;
}

Slot Builder::plane_conv(const Node& node, const Slot& x, const Node* reader) {
  const auto& a = node.attrs;
  const Slot y = bordered_planes(graph_.values[static_cast<size_t>(node.output)], reader);
  const Window window{a[0], a[1], 1, 1, a[4], a[5]};
  float* packed = program_.weights.take(k_.plane_conv_packed(x.channels, y.channels, window));
  k_.pack_plane_conv(packed, node.weights[0].data, x.channels, y.channels, window);
  const float* bias = padded(node.weights[1].data, node.weights[1].count);
  const Act act = static_cast<Act>(a[9]);
  Step& step = add("plane conv", x, y, {}, [=, &k = k_](const Frame& f, const Map&, const Map&, Part part) {
    k.plane_conv({planes_of(x, f), planes_of(y, f), window, packed, bias, act}, part.y0, part.y1);
  });
  step.by_blocks = false;
  step.macs = 1. * y.height * y.width * static_cast<double>(node.weights[0].count);
  return y;
}

void Builder::planar() {
  const Node* first = &node_at(planar_[0]);
  const Slot image = bordered_planes(graph_.values[static_cast<size_t>(image_)], first);
  const Program* p = &program_;
  Step& read = add("planes", kNoSlot, image, {}, [=, &k = k_](const Frame& f, const Map&, const Map&, Part part) {
    const Normalisation& n = f.type == Pixels::uint8 ? p->bytes : p->floats;
    const bool plain = n.scale.empty();
    k.planes_read(planes_of(image, f), f.image, f.type, plain ? nullptr : n.scale.data(), plain ? nullptr : n.shift.data(), part.y0, part.y1);
  });
  read.by_blocks = false;
  Slot x = image;
  const int last = planar_.back();
  for (size_t i = 0; i < planar_.size() && node_at(planar_[i]).op == Op::conv; ++i) {
    node_ = planar_[i];
    x = plane_conv(node_at(node_), x, i + 1 < planar_.size() ? &node_at(planar_[i + 1]) : nullptr);
  }
  node_ = last;
  const Slot gate = node_at(last).op == Op::cbam ? plane_gates(node_at(last), x) : kNoSlot, y = value(node_at(last).output);
  Step& step = add("map", x, y, {gate}, [=, &k = k_](const Frame& f, const Map&, const Map& to, Part part) {
    Planes factor{};
    if (gate.buffer >= 0) factor = planes_of(gate, f);
    k.planes_to_map(planes_of(x, f), factor, to, part.y0, part.y1);
  });
  step.by_blocks = false;
}

// Multiplies the planes of x by their channel gates; returns the pixel gates.
Slot Builder::plane_gates(const Node& node, const Slot& x) {
  PoolSlots pools;
  pools.line_sum = lines(x.channels, 1), pools.line_max = lines(x.channels, 1);
  Step& pool = add("plane pools", x, x, {pools.line_sum, pools.line_max}, [=, &k = k_](const Frame& f, const Map&, const Map&, Part) {
    k.planes_pool(planes_of(x, f), f.buffer(pools.line_sum), f.buffer(pools.line_max), 0, x.height);
  });
  pool.by_rows = pool.by_blocks = pool.clears_border = false;
  const Slot channel = mlp_gate(node, pools, 1, 1.f / (static_cast<float>(x.height) * static_cast<float>(x.width)), Act::relu, Act::sigmoid);
  const int kh = node.attrs[0], kw = node.attrs[1];
  const Shape shape{x.channels, x.height, x.width};
  const Slot pair = planes(shape, 2, kh, kw), gate = planes(shape, 1, 1, 1);
  Step& product = add("plane gates", x, pair, {channel}, [=, &k = k_](const Frame& f, const Map&, const Map&, Part part) {
    k.planes_gate(planes_of(x, f), f.buffer(channel), planes_of(x, f), planes_of(pair, f), part.y0, part.y1);
  });
  product.by_blocks = false;
  const float* w = padded(node.weights[4].data, node.weights[4].count);
  const float bias = *node.weights[5].data;
  Step& step = add("pixel gate", pair, gate, {}, [=, &glue = glue_](const Frame&, const Map& from, const Map& to, Part part) {
    glue.pixel_gate({from.data, from.row, from.block, 2, kh, kw, x.height, x.width, w, bias, to.data, to.row}, part);
  });
  step.by_blocks = false;
  step.macs = 2. * kh * kw * x.height * x.width;
  return gate;
}

}  // namespace ff::engine
