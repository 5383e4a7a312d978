// SPDX-License-Identifier: Apache-2.0
// Gates and attention as steps. A gate takes two passes over the map: pools, by the convolution that writes it, and the
// product; what is between them is small.
#include <algorithm>
#include <vector>

#include "engine/builder.h"

namespace ff::engine {
namespace {

constexpr Window kPoint{1, 1, 1, 1, 0, 0};
constexpr int kGateRows = 4;  // rows of a spatial gate that are made at a time

// A packed 1×1 convolution of a whole map.
void run_dense(const Kernels& k, const float* weights, const float* bias, int panel, Act act, const Map& x, const Map& y) {
  Conv c{};
  c.x = x, c.y = y, c.window = kPoint, c.weights = weights, c.panel = panel;
  c.epilogue.bias = bias, c.epilogue.act = act;
  k.conv(c, {0, y.height, 0, (y.channels + k.lanes - 1) / k.lanes});
}

void serial(Step& step) { step.by_rows = step.by_blocks = false; }

float inverse(int a, int b) { return 1.f / (static_cast<float>(a) * static_cast<float>(b)); }

}  // namespace

void Builder::pool(int id, const PoolSlots& wanted) {
  const Slot made = value(id);
  const bool columns = wanted.column_sum.buffer >= 0 || wanted.column_max.buffer >= 0;
  const Slot slots[] = {wanted.line_sum, wanted.line_max, wanted.column_sum, wanted.column_max};
  for (size_t i = program_.steps.size(); i-- > 0;) {
    Step& step = program_.steps[i];
    if (step.y.buffer != made.buffer) continue;
    if (!step.pools || step.pools->any()) break;
    *step.pools = wanted;
    if (columns) step.by_rows = false;
    for (const Slot& s : slots) touch(s, static_cast<int>(i));
    return;
  }
  const Slot x = read(id, Type::float32);
  Step& step = add("pools", x, x, {slots[0], slots[1], slots[2], slots[3]}, [=, &glue = glue_](const Frame& f, const Map& from, const Map&, Part part) {
    glue.line_pools({from, wanted.of(f)}, part);
  });
  step.clears_border = false;
  step.by_rows = !columns;
}

// What a gate multiplies: its reader takes any type, itself only float32.
Slot Builder::gate_input(const Node& node) { return deferred_[static_cast<size_t>(node_)] ? value(node.inputs[0]) : input(node); }

Slot Builder::mlp_gate(const Node& node, bool maxima, Act act, Act gate) {
  const Shape& x = graph_.values[static_cast<size_t>(node.inputs[0])];
  PoolSlots wanted;
  wanted.line_sum = lines(x.channels, x.height);
  if (maxima) wanted.line_max = lines(x.channels, x.height);
  pool(node.inputs[0], wanted);
  return mlp_gate(node, wanted, x.height, inverse(x.height, x.width), act, gate);
}

// Channel gates of an MLP (weights 0 to 3 of the node) of the means, scale · the sum of `count` lines, or of the sum over
// means and maxima.
Slot Builder::mlp_gate(const Node& node, const PoolSlots& pools, int count, float scale, Act act, Act gate) {
  const bool maxima = pools.line_max.buffer >= 0;
  const int pixels = maxima ? 2 : 1, channels = pools.line_sum.channels;
  const Dense first = dense(node.weights[0], node.weights[1], channels, pixels);
  const Dense second = dense(node.weights[2], node.weights[3], first.outputs, pixels);
  const Slot pooled = lines(channels, pixels), hidden = lines(first.outputs, pixels), logits = lines(channels, pixels), y = lines(channels, 1);
  const std::vector<Slot> others{pools.line_max, pooled, hidden, logits};
  Step& step = add("gate", pools.line_sum, y, others, [=, &k = k_, &glue = glue_](const Frame& f, const Map&, const Map& to, Part part) {
    glue.reduce({f.buffer(pools.line_sum), f.buffer(pools.line_max), count, scale, false, f.map(pooled)});
    run_dense(k, first.weights, first.bias, first.panel, act, f.map(pooled), f.map(hidden));
    run_dense(k, second.weights, second.bias, second.panel, maxima ? Act::none : gate, f.map(hidden), maxima ? f.map(logits) : to);
    if (!maxima) return;
    Map a = f.map(logits), b = a;
    a.width = b.width = 1, b.data += k.lanes;
    glue.binary({a, b, to, false, gate}, part);
  });
  serial(step);
  step.macs = static_cast<double>(pixels) * static_cast<double>(node.weights[0].count + node.weights[2].count);
  return y;
}

Slot Builder::neighbour_gate(const Node& node) {
  const Shape& x = graph_.values[static_cast<size_t>(node.inputs[0])];
  const Weights& w = node.weights[0];
  PoolSlots wanted;
  wanted.line_sum = lines(x.channels, x.height);
  pool(node.inputs[0], wanted);
  const int taps = static_cast<int>(w.count), margin = (taps / 2 + k_.lanes - 1) / k_.lanes;
  const Slot means = lines((blocks(x.channels) + 2 * margin + 1) * k_.lanes, 1), gate = lines(x.channels, 1);
  const float* weights = padded(w.data, w.count);
  const float scale = inverse(x.height, x.width);
  const int channels = x.channels, count = x.height;
  Step& step = add("gate", wanted.line_sum, gate, {means}, [=, &glue = glue_](const Frame& f, const Map&, const Map& to, Part) {
    float *all = f.buffer(means), *first = all + margin * means.pixel;
    std::fill(all, first, 0.f);
    glue.reduce({f.buffer(wanted.line_sum), nullptr, count, scale, false, {first, channels, 1, 1, means.row, means.block}});
    std::fill(first + channels, all + means.channels, 0.f);
    glue.neighbour_gate({first, weights, channels, taps, to.data});
  });
  serial(step);
  return gate;
}

// Maxima and means over the channels of x times its channel gates, within a border for a convolution.
Slot Builder::gate_planes(const Slot& x, const Slot& channel, bool mean_first, int kh, int kw) {
  const Slot pair = planes({x.channels, x.height, x.width}, 2, kh, kw);
  Step& step = add("pixel pools", x, pair, {channel}, [=, &glue = glue_](const Frame& f, const Map& from, const Map& to, Part part) {
    float *first = to.data, *second = first + to.block;
    PixelPools p{};
    p.x = from, p.channel = f.buffer(channel), p.row = to.row;
    p.max = mean_first ? second : first, p.mean = mean_first ? first : second;
    glue.pixel_pools(p, part);
  });
  step.by_blocks = false;
  return pair;
}

// x · (channel gate · or + pixel gate); the pixel gate, if any, from the same pass over rows of x. `pool`: 2×2 maximum.
void Builder::gated(const Node& node, const Slot& x, const Slot& channel, bool sum, bool pool, const PixelPools* pixel) {
  const Slot other = residual(Type::float32), y = output(node);
  const bool by_pixel = pixel != nullptr;
  const PixelPools pools = by_pixel ? *pixel : PixelPools{};
  const int rows = pool ? 2 : 1;
  if (by_pixel) program_.scratch = std::max(program_.scratch, static_cast<size_t>(2 * x.width));
  Step& step = add(op_name(node.op), x, y, {channel, other}, [=, &glue = glue_](const Frame& f, const Map& from, const Map& to, Part part) {
    Gated g{};
    g.x = from, g.y = to, g.residual = f.map(other), g.channel = f.buffer(channel), g.sum = sum, g.pool = pool, g.pixel_row = from.width;
    if (!by_pixel) return glue.gated(g, part);
    for (int row = part.y0; row < part.y1; ++row) {
      PixelPools p = pools;
      p.x = from, p.gate_row = from.width, p.gate = f.scratch - ptrdiff_t{row} * rows * from.width;
      glue.pixel_pools(p, {row * rows, (row + 1) * rows, part.b0, part.b1});
      g.pixel = p.gate;
      glue.gated(g, {row, row + 1, part.b0, part.b1});
    }
  });
  if (by_pixel) step.by_blocks = false;
}

// x · channel gate · logistic(convolution of the planes + bias).
void Builder::gated_by_planes(const Node& node, const Slot& x, const Slot& channel, const Slot& pair, const float* w, float bias, int kh, int kw) {
  const Slot other = residual(Type::float32), y = output(node);
  program_.scratch = std::max(program_.scratch, static_cast<size_t>(kGateRows * x.width));
  Step& step = add(op_name(node.op), x, y, {channel, pair, other}, [=, &glue = glue_](const Frame& f, const Map& from, const Map& to, Part part) {
    const Map planes = f.map(pair);
    Gated g{};
    g.x = from, g.y = to, g.residual = f.map(other), g.channel = f.buffer(channel), g.pixel_row = from.width;
    for (int row = part.y0; row < part.y1; row += kGateRows) {
      const Part some{row, std::min(row + kGateRows, part.y1), part.b0, part.b1};
      float* gate = f.scratch - ptrdiff_t{row} * from.width;
      glue.pixel_gate({planes.data, planes.row, planes.block, 2, kh, kw, from.height, from.width, w, bias, gate, from.width}, some);
      g.pixel = gate;
      glue.gated(g, some);
    }
  });
  step.by_blocks = false;
  step.macs = 2. * kh * kw * x.height * x.width;
}

// The product with the gates, or what the reader of the product needs for it.
void Builder::multiply(const Node& node, const GateSlots& gates) {
  if (deferred_[static_cast<size_t>(node_)]) {
    gates_[static_cast<size_t>(node.output)] = gates;
    return;
  }
  if (gates.channel.buffer >= 0) return gated(node, gates.x, gates.channel, false, false, nullptr);
  add(op_name(node.op), gates.x, output(node), {gates.line, gates.column}, [=, &k = k_](const Frame& f, const Map& from, const Map& to, Part part) {
    k.gate(from, {nullptr, f.buffer(gates.line), f.buffer(gates.column), nullptr}, to, part);
  });
}

void Builder::cbam(const Node& node) {
  const Slot x = input(node), channel = mlp_gate(node, true, Act::relu, Act::sigmoid);
  const int kh = node.attrs[0], kw = node.attrs[1];
  const Slot pair = gate_planes(x, channel, false, kh, kw);
  gated_by_planes(node, x, channel, pair, padded(node.weights[4].data, node.weights[4].count), *node.weights[5].data, kh, kw);
}

void Builder::se(const Node& node) {
  const Slot x = gate_input(node);
  multiply(node, {x, mlp_gate(node, false, static_cast<Act>(node.attrs[0]), static_cast<Act>(node.attrs[1])), kNoSlot, kNoSlot});
}

void Builder::eca(const Node& node) {
  const Slot x = gate_input(node);
  multiply(node, {x, neighbour_gate(node), kNoSlot, kNoSlot});
}

void Builder::scse(const Node& node) {
  const Slot x = input(node), channel = mlp_gate(node, false, static_cast<Act>(node.attrs[0]), Act::sigmoid);
  PixelPools p{};
  p.taps = padded(node.weights[4].data, node.weights[4].count), p.at_mean = 1, p.bias = *node.weights[5].data;
  gated(node, x, channel, true, false, &p);
}

void Builder::sa(const Node& node) {
  const Slot x = input(node);
  const bool mean_first = node.attrs[0] == 1;
  const int kh = node.attrs[1], kw = node.attrs[2];
  const float *w = node.weights[0].data, bias = *node.weights[1].data;
  if (kh == 1 && kw == 1) {
    PixelPools p{};
    p.at_max = w[mean_first], p.at_mean = w[!mean_first], p.bias = bias;
    return gated(node, x, kNoSlot, false, false, &p);
  }
  gated_by_planes(node, x, kNoSlot, gate_planes(x, kNoSlot, mean_first, kh, kw), padded(w, node.weights[0].count), bias, kh, kw);
}

void Builder::csa(const Node& node) {
  const Slot x = input(node);
  PixelPools p{};
  p.at_max = node.weights[1].data[0], p.at_mean = node.weights[1].data[1], p.bias = *node.weights[2].data;
  gated(node, x, neighbour_gate(node), true, node.attrs[0] == 1, &p);
}

// What makes the gates of the rows or of the columns, `over` pixels each.
Builder::LineGate Builder::line_gate(const Slot& sum, const Slot& most, int over, const Dense& first, const Dense& last) {
  const Slot& from = sum.buffer >= 0 ? sum : most;
  float* scale = program_.weights.take(padded_size(from.channels));
  std::fill(scale, scale + from.channels, 1.f / static_cast<float>(over));
  return {sum, most, lines(from.channels, from.width), lines(first.outputs, from.width), lines(from.channels, from.width), scale, first, last};
}

void Builder::coordinate(const Node& node) {
  const Slot x = gate_input(node);
  const int mode = node.attrs[0], c = x.channels, m = static_cast<int>(node.weights[1].count);
  PoolSlots wanted;
  if (mode != 1) wanted.line_sum = lines(c, x.height), wanted.column_sum = lines(c, x.width);
  if (mode != 0) wanted.line_max = lines(c, x.height), wanted.column_max = lines(c, x.width);
  pool(node.inputs[0], wanted);
  const Dense first = dense(node.weights[0], node.weights[1], c, x.height);
  const LineGate rows = line_gate(wanted.line_sum, wanted.line_max, x.width, first, dense(node.weights[2], node.weights[3], m, x.height));
  const LineGate columns = line_gate(wanted.column_sum, wanted.column_max, x.height, first, dense(node.weights[4], node.weights[5], m, x.width));
  std::vector<Slot> touched;
  for (const LineGate* g : {&rows, &columns}) touched.insert(touched.end(), {g->sum, g->most, g->pooled, g->hidden, g->gate});
  // Two threads may make one of the two each.
  Step& step = add("gate", kNoSlot, kNoSlot, touched, [=, &k = k_, &glue = glue_](const Frame& f, const Map&, const Map&, Part part) {
    const Part all{0, 1, 0, (c + k.lanes - 1) / k.lanes};
    for (int axis = part.y0; axis < part.y1; ++axis) {
      const LineGate& g = axis ? columns : rows;
      const bool means = g.sum.buffer >= 0;
      if (means) glue.affine({f.map(g.sum), f.map(g.pooled), g.scale, nullptr, Act::none}, all);
      if (means && g.most.buffer >= 0) glue.binary({f.map(g.pooled), f.map(g.most), f.map(g.pooled), false, Act::none}, all);
      run_dense(k, g.first.weights, g.first.bias, g.first.panel, Act::hardswish, f.map(means ? g.pooled : g.most), f.map(g.hidden));
      run_dense(k, g.last.weights, g.last.bias, g.last.panel, Act::sigmoid, f.map(g.hidden), f.map(g.gate));
    }
  });
  step.height = 2, step.blocks = 1, step.by_blocks = false;
  step.macs = 2. * c * m * (x.height + x.width);
  multiply(node, {x, kNoSlot, rows.gate, columns.gate});
}

void Builder::dot_attention(const Node& node) {
  const Slot q = input(node), kv = input(node, 1), y = output(node);
  const bool mean = node.attrs[0] == 1;
  const float scale = *node.weights[0].data;
  program_.scratch = std::max(program_.scratch, glue_.dot_scratch(q.channels, kv.height * kv.width));
  Step& step = add("dot_attention", q, y, {kv}, [=, &glue = glue_](const Frame& f, const Map& from, const Map& to, Part part) {
    glue.dot_attention({from, f.map(kv), to, scale, mean, f.scratch}, mean ? Part{0, from.height, 0, 1} : part);
  });
  step.by_blocks = false, step.by_rows = !mean;
  step.macs = 2. * q.channels * q.height * q.width * kv.height * kv.width;
}

void Builder::additive_attention(const Node& node) {
  const Slot h = input(node), x = input(node, 1), y = output(node);
  const int d = x.channels, e = static_cast<int>(node.weights[1].count), pixels = x.height * x.width;
  // W [x; h] as two convolutions, of which the second adds the first.
  const idx half = idx{e} * d;
  std::vector<float> parts[2] = {std::vector<float>(static_cast<size_t>(half)), std::vector<float>(static_cast<size_t>(half))};
  for (idx row = 0; row < e; ++row)
    for (int part = 0; part < 2; ++part) std::copy_n(node.weights[0].data + (2 * row + part) * d, d, parts[part].data() + row * d);
  const std::vector<float> none(static_cast<size_t>(e), 0.f);
  const Slot first = new_slot({e, x.height, x.width}), hidden = new_slot({e, x.height, x.width});
  const auto project = [&](const Slot& from, const Dense& dense, const Slot& residual, const Slot& to) {
    Step& step = add("conv", from, to, {residual}, [=, &k = k_](const Frame& f, const Map& in, const Map& out, Part part) {
      Conv c{};
      c.x = in, c.y = out, c.window = kPoint, c.weights = dense.weights, c.panel = dense.panel;
      c.epilogue.bias = dense.bias, c.epilogue.residual = f.map(residual);
      k.conv(c, part);
    });
    step.panel = dense.panel, step.macs = static_cast<double>(half) * from.height * from.width;
  };
  project(x, dense({parts[0].data(), half}, {none.data(), e}, d, pixels), kNoSlot, first);
  project(h, dense({parts[1].data(), half}, node.weights[1], d, pixels), first, hidden);
  const float* v = padded(node.weights[2].data, node.weights[2].count);
  program_.scratch = std::max(program_.scratch, static_cast<size_t>(pixels + k_.lanes));
  Step& step = add("additive_attention", x, y, {hidden}, [=, &glue = glue_](const Frame& f, const Map& from, const Map& to, Part) {
    glue.additive_attention({from, f.map(hidden), to, v, f.scratch});
  });
  serial(step);
  step.macs = 1. * (d + e) * pixels;
}

}  // namespace ff::engine
