// SPDX-License-Identifier: Apache-2.0
// The start of a network whose maps have few channels and many pixels: planes instead of blocks that would be half
// empty.
#include <algorithm>

#include "engine/plan/lower.h"

namespace ff::engine {
namespace {

constexpr int kLine = 16;  // floats of a cache line

Planes planes_of(const Slot& s, const Frame& f) {
  return {f.buffer(s) + s.origin, s.channels, s.height, s.width, s.row, s.block};
}

// A border for what a convolution reads; rows start on cache lines, and the border of two rows is shared.
Slot bordered_planes(Lowering& l, const Shape& shape, const graph::Conv* reader) {
  Slot s{-1, 1, 0, shape.channels, shape.height, shape.width, 0, 0, 0, kLine, 0, 0, Type::float32, {}};
  if (reader) s.top = reader->sliding.window.top, s.bottom = reader->sliding.bottom + 1;
  const int width = (shape.width + kLine - 1) / kLine * kLine;
  s.right = width - shape.width, s.row = kLine + width;
  s.block = s.row * (s.top + shape.height + s.bottom);
  s.origin = s.top * s.row + kLine;
  s.buffer = l.new_buffer(static_cast<size_t>(s.block) * static_cast<size_t>(shape.channels) + kPlaneSlack);
  return s;
}

Slot read_image(Lowering& l, const graph::Conv& first) {
  const Slot image = bordered_planes(l, l.shape(l.input()), &first);
  const Program* p = &l.program();
  Step& read =
      l.add("planes", kNoSlot, image, {}, [=, &k = l.kernels()](const Frame& f, const Map&, const Map&, Part part) {
        const Normalisation& n = f.type == Pixels::uint8 ? p->bytes : p->floats;
        const bool plain = n.scale.empty();
        k.planes_read(planes_of(image, f), f.image, f.type, plain ? nullptr : n.scale.data(),
                      plain ? nullptr : n.shift.data(), part.y0, part.y1);
      });
  read.by_blocks = false;
  return image;
}

Slot plane_conv(Lowering& l, const graph::Stage<graph::Conv>& stage, const Slot& x, const graph::Conv* reader) {
  const graph::Conv& op = stage.op;
  const Kernels& k = l.kernels();
  const Slot y = bordered_planes(l, l.shape(stage.output), reader);
  const Window window = op.sliding.window;
  float* packed = l.packed(k.plane_conv_packed(x.channels, y.channels, window));
  k.pack_plane_conv(packed, op.weight.data, x.channels, y.channels, window);
  const float* bias = l.padded(op.bias);
  const Act act = op.act;
  Step& step = l.add("plane conv", x, y, {}, [=, &k](const Frame& f, const Map&, const Map&, Part part) {
    k.plane_conv({planes_of(x, f), planes_of(y, f), window, packed, bias, act}, part.y0, part.y1);
  });
  step.by_blocks = false;
  step.macs = 1. * y.height * y.width * static_cast<double>(op.weight.count);
  return y;
}

// Multiplies the planes of x by their channel gates; returns the pixel gates.
Slot plane_gates(Lowering& l, const graph::Cbam& op, const Slot& x) {
  const Kernels& k = l.kernels();
  PoolSlots pools;
  pools.line_sum = l.lines(x.channels, 1), pools.line_max = l.lines(x.channels, 1);
  Step& pool = l.add("plane pools", x, x, {pools.line_sum, pools.line_max},
                     [=, &k](const Frame& f, const Map&, const Map&, Part) {
                       k.planes_pool(planes_of(x, f), f.buffer(pools.line_sum), f.buffer(pools.line_max), 0, x.height);
                     });
  serial(pool), pool.clears_border = false;
  const Slot channel = mlp_gate(l, op.mlp, pools, 1, inverse(x.height, x.width), Act::relu, Act::sigmoid);
  const int kh = op.kh, kw = op.kw;
  const Shape shape{x.channels, x.height, x.width};
  const Slot pair = l.planes(shape, 2, kh, kw), gate = l.planes(shape, 1, 1, 1);
  Step& product = l.add("plane gates", x, pair, {channel}, [=, &k](const Frame& f, const Map&, const Map&, Part part) {
    k.planes_gate(planes_of(x, f), f.buffer(channel), planes_of(x, f), planes_of(pair, f), part.y0, part.y1);
  });
  product.by_blocks = false;
  const float *w = l.padded(op.spatial.weight), bias = *op.spatial.bias.data;
  Step& step = l.add(
      "pixel gate", pair, gate, {}, [=, &glue = l.glue()](const Frame&, const Map& from, const Map& to, Part part) {
        glue.pixel_gate({from.data, from.row, from.block, 2, kh, kw, x.height, x.width, w, bias, to.data, to.row},
                        part);
      });
  step.by_blocks = false;
  step.macs = 2. * kh * kw * x.height * x.width;
  return gate;
}

}  // namespace

void lower(Lowering& l, const Node& node, const graph::Planar& op) {
  Slot x = read_image(l, op.convs[0].op);
  for (size_t i = 0; i < op.convs.size(); ++i) {
    l.begin(op.convs[i].origin);
    x = plane_conv(l, op.convs[i], x, i + 1 < op.convs.size() ? &op.convs[i + 1].op : nullptr);
  }
  l.begin(node.origin);
  const Slot planes = x, gate = op.cbam ? plane_gates(l, op.cbam->op, x) : kNoSlot, y = l.output(node);
  Step& step =
      l.add("map", planes, y, {gate}, [=, &k = l.kernels()](const Frame& f, const Map&, const Map& to, Part part) {
        Planes factor{};
        if (gate.buffer >= 0) factor = planes_of(gate, f);
        k.planes_to_map(planes_of(planes, f), factor, to, part.y0, part.y1);
      });
  step.by_blocks = false;
}

}  // namespace ff::engine
