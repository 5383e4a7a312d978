// SPDX-License-Identifier: Apache-2.0
// Gates as steps. A gate takes two passes over the map: pools, by the convolution that writes it, and the product; what
// is between them is small.
#include <algorithm>

#include "engine/plan/lower.h"

namespace ff::engine {
namespace {

constexpr int kGateRows = 4;  // rows of a spatial gate that are made at a time

// A packed 1×1 convolution of a whole map.
void run_dense(const Kernels& k, const Dense& dense, Act act, const Map& x, const Map& y) {
  Conv c{};
  c.x = x, c.y = y, c.window = kPoint, c.weights = dense.weights, c.panel = dense.panel;
  c.epilogue.bias = dense.bias, c.epilogue.act = act;
  k.conv(c, {0, y.height, 0, (y.channels + k.lanes - 1) / k.lanes});
}

// What a gate multiplies: a reader that makes the product takes any type, the gate itself float32.
Slot gate_input(Lowering& l, const Node& node, bool by_reader) {
  return by_reader ? l.value(node.inputs[0]) : l.input(node);
}

Slot channel_gate(Lowering& l, const Node& node, const graph::Mlp& mlp, bool maxima, Act act, Act gate) {
  const Shape& x = l.shape(node.inputs[0]);
  PoolSlots wanted;
  wanted.line_sum = l.lines(x.channels, x.height);
  if (maxima) wanted.line_max = l.lines(x.channels, x.height);
  l.pool(node.inputs[0], wanted);
  return mlp_gate(l, mlp, wanted, x.height, inverse(x.height, x.width), act, gate);
}

Slot neighbour_gate(Lowering& l, const Node& node, const Weights& w) {
  const Shape& x = l.shape(node.inputs[0]);
  const int lanes = l.kernels().lanes;
  PoolSlots wanted;
  wanted.line_sum = l.lines(x.channels, x.height);
  l.pool(node.inputs[0], wanted);
  const int taps = static_cast<int>(w.count), margin = (taps / 2 + lanes - 1) / lanes;
  const Slot means = l.lines((l.blocks(x.channels) + 2 * margin + 1) * lanes, 1), gate = l.lines(x.channels, 1);
  const float* weights = l.padded(w);
  const float scale = inverse(x.height, x.width);
  const int channels = x.channels, count = x.height;
  serial(l.add(
      "gate", wanted.line_sum, gate, {means}, [=, &glue = l.glue()](const Frame& f, const Map&, const Map& to, Part) {
        float *all = f.buffer(means), *first = all + margin * means.pixel;
        std::fill(all, first, 0.f);
        glue.reduce(
            {f.buffer(wanted.line_sum), nullptr, count, scale, false, {first, channels, 1, 1, means.row, means.block}});
        std::fill(first + channels, all + means.channels, 0.f);
        glue.neighbour_gate({first, weights, channels, taps, to.data});
      }));
  return gate;
}

// Maxima and means over the channels of x times its channel gates, within a border for a convolution.
Slot gate_planes(Lowering& l, const Slot& x, const Slot& channel, bool mean_first, int kh, int kw) {
  const Slot pair = l.planes({x.channels, x.height, x.width}, 2, kh, kw);
  Step& step = l.add("pixel pools", x, pair, {channel},
                     [=, &glue = l.glue()](const Frame& f, const Map& from, const Map& to, Part part) {
                       float *first = to.data, *second = first + to.block;
                       PixelPools p{};
                       p.x = from, p.channel = f.buffer(channel), p.row = to.row;
                       p.max = mean_first ? second : first, p.mean = mean_first ? first : second;
                       glue.pixel_pools(p, part);
                     });
  step.by_blocks = false;
  return pair;
}

// How a map is multiplied: by channel and pixel gates, or by their sum; then the 2×2 maximum, or not.
struct Product {
  Slot x, channel = kNoSlot;
  bool sum = false, pool = false;
};

// x · (channel gate · or + pixel gate); the pixel gate, if any, from the same pass over rows of x.
void gated(Lowering& l, const Node& node, const char* name, const Product& p, const PixelPools* pixel) {
  const Slot other = l.residual(node), y = l.output(node), channel = p.channel;
  const bool by_pixel = pixel != nullptr, sum = p.sum, pool = p.pool;
  const PixelPools pools = by_pixel ? *pixel : PixelPools{};
  const int rows = pool ? 2 : 1;
  if (by_pixel) l.want_scratch(static_cast<size_t>(2 * p.x.width));
  Step& step = l.add(
      name, p.x, y, {channel, other}, [=, &glue = l.glue()](const Frame& f, const Map& from, const Map& to, Part part) {
        Gated g{};
        g.x = from, g.y = to, g.residual = f.map(other), g.channel = f.buffer(channel), g.sum = sum, g.pool = pool,
        g.pixel_row = from.width;
        if (!by_pixel) return glue.gated(g, part);
        for (int row = part.y0; row < part.y1; ++row) {
          PixelPools call = pools;
          call.x = from, call.gate_row = from.width, call.gate = f.scratch - ptrdiff_t{row} * rows * from.width;
          glue.pixel_pools(call, {row * rows, (row + 1) * rows, part.b0, part.b1});
          g.pixel = call.gate;
          glue.gated(g, {row, row + 1, part.b0, part.b1});
        }
      });
  if (by_pixel) step.by_blocks = false;
}

// x · channel gate · logistic(convolution of the planes + bias).
void gated_by_planes(Lowering& l, const Node& node, const char* name, const Slot& x, const Slot& channel,
                     const Slot& pair, const graph::Spatial& spatial, int kh, int kw) {
  const float *w = l.padded(spatial.weight), bias = *spatial.bias.data;
  const Slot other = l.residual(node), y = l.output(node);
  l.want_scratch(static_cast<size_t>(kGateRows * x.width));
  Step& step = l.add(name, x, y, {channel, pair, other},
                     [=, &glue = l.glue()](const Frame& f, const Map& from, const Map& to, Part part) {
                       const Map planes = f.map(pair);
                       Gated g{};
                       g.x = from, g.y = to, g.residual = f.map(other), g.channel = f.buffer(channel),
                       g.pixel_row = from.width;
                       for (int row = part.y0; row < part.y1; row += kGateRows) {
                         const Part some{row, std::min(row + kGateRows, part.y1), part.b0, part.b1};
                         float* gate = f.scratch - ptrdiff_t{row} * from.width;
                         glue.pixel_gate({planes.data, planes.row, planes.block, 2, kh, kw, from.height, from.width, w,
                                          bias, gate, from.width},
                                         some);
                         g.pixel = gate;
                         glue.gated(g, some);
                       }
                     });
  step.by_blocks = false;
  step.macs = 2. * kh * kw * x.height * x.width;
}

// Gates of the rows or columns of a map from their pools: scaled and added, then two dense layers.
struct LineGate {
  Slot sum, most, pooled, hidden, gate;
  const float* scale;
  Dense first, last;

  LineGate(Lowering& l, const Slot& sum, const Slot& most, int over, const Dense& first, const Dense& last)
      : sum(sum), most(most), first(first), last(last) {
    const Slot& from = sum.buffer >= 0 ? sum : most;
    float* to = l.packed(l.padded_size(from.channels));
    std::fill(to, to + from.channels, 1.f / static_cast<float>(over));
    scale = to;
    pooled = l.lines(from.channels, from.width), hidden = l.lines(first.outputs, from.width),
    gate = l.lines(from.channels, from.width);
  }
  std::vector<Slot> slots() const { return {sum, most, pooled, hidden, gate}; }
  void run(const Kernels& k, const Glue& glue, const Frame& f) const {
    const bool means = sum.buffer >= 0;
    const Part all{0, 1, 0, (gate.channels + k.lanes - 1) / k.lanes};
    if (means) glue.affine({f.map(sum), f.map(pooled), scale, nullptr, Act::none}, all);
    if (means && most.buffer >= 0) glue.binary({f.map(pooled), f.map(most), f.map(pooled), false, Act::none}, all);
    run_dense(k, first, Act::hardswish, f.map(means ? pooled : most), f.map(hidden));
    run_dense(k, last, Act::sigmoid, f.map(hidden), f.map(gate));
  }
};

}  // namespace

Slot mlp_gate(Lowering& l, const graph::Mlp& mlp, const PoolSlots& pools, int count, float scale, Act act, Act gate) {
  const bool maxima = pools.line_max.buffer >= 0;
  const int pixels = maxima ? 2 : 1, channels = pools.line_sum.channels;
  const Dense first = l.dense(mlp.w1, mlp.b1, channels, pixels),
              second = l.dense(mlp.w2, mlp.b2, first.outputs, pixels);
  const Slot pooled = l.lines(channels, pixels), hidden = l.lines(first.outputs, pixels),
             logits = l.lines(channels, pixels), y = l.lines(channels, 1);
  const std::vector<Slot> others{pools.line_max, pooled, hidden, logits};
  Step& step =
      l.add("gate", pools.line_sum, y, others,
            [=, &k = l.kernels(), &glue = l.glue()](const Frame& f, const Map&, const Map& to, Part part) {
              glue.reduce({f.buffer(pools.line_sum), f.buffer(pools.line_max), count, scale, false, f.map(pooled)});
              run_dense(k, first, act, f.map(pooled), f.map(hidden));
              run_dense(k, second, maxima ? Act::none : gate, f.map(hidden), maxima ? f.map(logits) : to);
              if (!maxima) return;
              Map a = f.map(logits), b = a;
              a.width = b.width = 1, b.data += k.lanes;
              glue.binary({a, b, to, false, gate}, part);
            });
  serial(step);
  step.macs = static_cast<double>(pixels) * static_cast<double>(mlp.w1.count + mlp.w2.count);
  return y;
}

void lower(Lowering& l, const Node& node, const graph::Cbam& op) {
  const Slot x = l.input(node), channel = channel_gate(l, node, op.mlp, true, Act::relu, Act::sigmoid);
  gated_by_planes(l, node, op.kName, x, channel, gate_planes(l, x, channel, false, op.kh, op.kw), op.spatial, op.kh,
                  op.kw);
}

void lower(Lowering& l, const Node& node, const graph::Se& op) {
  const Slot x = gate_input(l, node, op.by_reader), channel = channel_gate(l, node, op.mlp, false, op.act, op.gate_act);
  if (op.by_reader)
    l.gates(node.output) = {x, channel, kNoSlot, kNoSlot};
  else
    gated(l, node, op.kName, {x, channel}, nullptr);
}

void lower(Lowering& l, const Node& node, const graph::Eca& op) {
  const Slot x = gate_input(l, node, op.by_reader), channel = neighbour_gate(l, node, op.weight);
  if (op.by_reader)
    l.gates(node.output) = {x, channel, kNoSlot, kNoSlot};
  else
    gated(l, node, op.kName, {x, channel}, nullptr);
}

void lower(Lowering& l, const Node& node, const graph::Scse& op) {
  const Slot x = l.input(node), channel = channel_gate(l, node, op.mlp, false, op.act, Act::sigmoid);
  PixelPools p{};
  p.taps = l.padded(op.spatial.weight), p.at_mean = 1, p.bias = *op.spatial.bias.data;
  gated(l, node, op.kName, {x, channel, true}, &p);
}

void lower(Lowering& l, const Node& node, const graph::Sa& op) {
  const Slot x = l.input(node);
  if (op.kh > 1 || op.kw > 1)
    return gated_by_planes(l, node, op.kName, x, kNoSlot, gate_planes(l, x, kNoSlot, op.mean_first, op.kh, op.kw),
                           op.spatial, op.kh, op.kw);
  const float* w = op.spatial.weight.data;
  PixelPools p{};
  p.at_max = w[op.mean_first], p.at_mean = w[!op.mean_first], p.bias = *op.spatial.bias.data;
  gated(l, node, op.kName, {x}, &p);
}

void lower(Lowering& l, const Node& node, const graph::Csa& op) {
  const Slot x = l.input(node);
  PixelPools p{};
  p.at_max = op.spatial.weight.data[0], p.at_mean = op.spatial.weight.data[1], p.bias = *op.spatial.bias.data;
  gated(l, node, op.kName, {x, neighbour_gate(l, node, op.weight), true, op.pool}, &p);
}

void lower(Lowering& l, const Node& node, const graph::Coordinate& op) {
  const Slot x = gate_input(l, node, op.by_reader);
  const int c = x.channels, m = static_cast<int>(op.bias.count);
  PoolSlots wanted;
  if (op.mode != 1) wanted.line_sum = l.lines(c, x.height), wanted.column_sum = l.lines(c, x.width);
  if (op.mode != 0) wanted.line_max = l.lines(c, x.height), wanted.column_max = l.lines(c, x.width);
  l.pool(node.inputs[0], wanted);
  const Dense first = l.dense(op.weight, op.bias, c, x.height);
  const LineGate rows(l, wanted.line_sum, wanted.line_max, x.width, first, l.dense(op.rows, op.rows_bias, m, x.height));
  const LineGate columns(l, wanted.column_sum, wanted.column_max, x.height, first,
                         l.dense(op.columns, op.columns_bias, m, x.width));
  std::vector<Slot> touched = rows.slots();
  for (const Slot& s : columns.slots()) touched.push_back(s);
  // Two threads may make one of the two each.
  Step& step = l.add("gate", kNoSlot, kNoSlot, touched,
                     [=, &k = l.kernels(), &glue = l.glue()](const Frame& f, const Map&, const Map&, Part part) {
                       for (int axis = part.y0; axis < part.y1; ++axis) (axis ? columns : rows).run(k, glue, f);
                     });
  step.height = 2, step.blocks = 1, step.by_blocks = false;
  step.macs = 2. * c * m * (x.height + x.width);
  const Slot line = rows.gate, column = columns.gate;
  if (op.by_reader) {
    l.gates(node.output) = {x, kNoSlot, line, column};
    return;
  }
  l.add(op.kName, x, l.output(node), {line, column},
        [=, &k = l.kernels()](const Frame& f, const Map& from, const Map& to, Part part) {
          k.gate(from, {nullptr, f.buffer(line), f.buffer(column), nullptr}, to, part);
        });
}

}  // namespace ff::engine
