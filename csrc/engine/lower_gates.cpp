// SPDX-License-Identifier: Apache-2.0
// Gates and attention as steps. A gate takes two passes over the map: pools, then the product, with the gates in between.
#include <algorithm>
#include <vector>

#include "engine/builder.h"

namespace ff::engine {
namespace {

constexpr Window kPoint{1, 1, 1, 1, 0, 0};

// A packed 1×1 convolution of a whole map.
void run_dense(const Kernels& k, const float* weights, const float* bias, int panel, Act act, const Map& x, const Map& y) {
  Conv c{};
  c.x = x, c.y = y, c.window = kPoint, c.weights = weights, c.panel = panel;
  c.epilogue.bias = bias, c.epilogue.act = act;
  k.conv(c, {0, y.height, 0, (y.channels + k.lanes - 1) / k.lanes});
}

void serial(Step& step) { step.by_rows = step.by_blocks = false; }

}  // namespace

// Sums of the rows of x, and their maxima when wanted.
Slot Builder::line_sums(const Slot& x, bool maxima, Slot* most) {
  const Slot sums = lines(x.channels, x.height), largest = maxima ? lines(x.channels, x.height) : sums;
  Step& step = add("line sums", {x, sums, largest}, x, [=, &glue = glue_](const Frame& f, Part part) {
    glue.line_pools({f.map(x), {f.buffers[sums.buffer], maxima ? f.buffers[largest.buffer] : nullptr, nullptr, nullptr}}, part);
  });
  step.bordered.clear();
  *most = largest;
  return sums;
}

// Channel gates of an MLP (weights 0 to 3 of the node) of the means, or of the sum over means and maxima.
Slot Builder::mlp_gate(const Node& node, const Slot& x, bool maxima, Act act, Act gate) {
  Slot most{};
  const Slot sums = line_sums(x, maxima, &most);
  const int pixels = maxima ? 2 : 1;
  const Dense first = dense(node.weights[0], node.weights[1], x.channels, pixels);
  const Dense second = dense(node.weights[2], node.weights[3], first.outputs, pixels);
  const Slot pooled = lines(x.channels, pixels), hidden = lines(first.outputs, pixels), y = lines(x.channels, pixels), sum = lines(x.channels, 1);
  const float scale = 1.f / (static_cast<float>(x.height) * static_cast<float>(x.width));
  Step& step = add("gate", {sums, most, pooled, hidden, y}, sum, [=, &k = k_, &glue = glue_](const Frame& f, Part) {
    glue.reduce({f.buffers[sums.buffer], maxima ? f.buffers[most.buffer] : nullptr, sums.width, scale, false, f.map(pooled)});
    run_dense(k, first.weights, first.bias, first.panel, act, f.map(pooled), f.map(hidden));
    run_dense(k, second.weights, second.bias, second.panel, maxima ? Act::none : gate, f.map(hidden), f.map(maxima ? y : sum));
    if (!maxima) return;
    const Part all{0, 1, 0, (x.channels + k.lanes - 1) / k.lanes};
    Map a = f.map(y), b = a;
    a.width = b.width = 1, b.data += k.lanes;
    glue.binary({a, b, f.map(sum), false, gate}, all);
  });
  serial(step);
  step.macs = static_cast<double>(pixels) * static_cast<double>(node.weights[0].count + node.weights[2].count);
  return sum;
}

Slot Builder::neighbour_gate(const Slot& x, const Weights& w) {
  Slot most{};
  const Slot sums = line_sums(x, false, &most), means = lines(x.channels, 1), gate = lines(x.channels, 1);
  const float* weights = padded(w.data, w.count);
  const int taps = static_cast<int>(w.count);
  const float scale = 1.f / (static_cast<float>(x.height) * static_cast<float>(x.width));
  Step& step = add("gate", {sums, means}, gate, [=, &glue = glue_](const Frame& f, Part) {
    glue.reduce({f.buffers[sums.buffer], nullptr, sums.width, scale, false, f.map(means)});
    glue.neighbour_gate({f.buffers[means.buffer], weights, x.channels, taps, f.buffers[gate.buffer]});
  });
  serial(step);
  return gate;
}

// Planes with a border of half a kernel, as a slot whose blocks are planes and whose row counts single floats.
Slot Builder::planes(const Shape& shape, int count, int kh, int kw) {
  const int top = kh / 2, left = kw / 2;
  Slot s{-1, 1, 0, count, shape.height, shape.width, 0, 0, top, left, top, left};
  s.row = shape.width + 2 * left;
  s.block = s.row * (shape.height + 2 * top);
  s.origin = top * s.row + left;
  s.buffer = new_buffer(static_cast<size_t>(s.block) * static_cast<size_t>(count));
  return s;
}

// Gates of the pixels: a convolution of the maxima and means over the channels of x times its channel gates.
Slot Builder::pixel_gate(const Slot& x, const Slot* channel, const Weights& w, const Weights& bias, int kh, int kw, bool mean_first) {
  const Shape shape{x.channels, x.height, x.width};
  const Slot pair = planes(shape, 2, kh, kw), gate = planes(shape, 1, 1, 1);
  const bool gated = channel != nullptr;
  const Slot factor = gated ? *channel : pair;
  Step& pools = add("pixel pools", {x, factor}, pair, [=, &glue = glue_](const Frame& f, Part part) {
    PixelPools p{};
    p.x = f.map(x), p.gate = gated ? f.buffers[factor.buffer] : nullptr, p.row = pair.row;
    float *first = f.buffers[pair.buffer] + pair.origin, *second = first + pair.block;
    p.max = mean_first ? second : first, p.mean = mean_first ? first : second;
    glue.pixel_pools(p, part);
  });
  pools.by_blocks = false;
  if (kh == 1 && kw == 1) pools.bordered.clear();
  const float* weights = padded(w.data, w.count);
  const float b = *bias.data;
  Step& step = add("pixel gate", {pair}, gate, [=, &glue = glue_](const Frame& f, Part part) {
    PixelGate p{f.buffers[pair.buffer] + pair.origin, pair.row, pair.block, 2, kh, kw, x.height, x.width, weights, b,
                f.buffers[gate.buffer], gate.row};
    glue.pixel_gate(p, part);
  });
  step.by_blocks = false;
  step.macs = 2. * kh * kw * x.height * x.width;
  return gate;
}

void Builder::gated(const Slot& x, const Slot* channel, const Slot* pixel, bool sum, bool pool, const Slot& y) {
  const bool by_channel = channel != nullptr, by_pixel = pixel != nullptr;
  const Slot c = by_channel ? *channel : x, p = by_pixel ? *pixel : x;
  add("gated", {x, c, p}, y, [=, &glue = glue_](const Frame& f, Part part) {
    Gated g{};
    g.x = f.map(x), g.y = f.map(y), g.sum = sum, g.pool = pool;
    g.channel = by_channel ? f.buffers[c.buffer] : nullptr;
    g.pixel = by_pixel ? f.buffers[p.buffer] : nullptr;
    g.pixel_row = p.row;
    glue.gated(g, part);
  });
}

void Builder::cbam(const Node& node) {
  const Slot x = value(node.inputs[0]), y = value(node.output);
  const Slot channel = mlp_gate(node, x, true, Act::relu, Act::sigmoid);
  const Slot pixel = pixel_gate(x, &channel, node.weights[4], node.weights[5], node.attrs[0], node.attrs[1], false);
  gated(x, &channel, &pixel, false, false, y);
}

void Builder::se(const Node& node) {
  const Slot x = value(node.inputs[0]), y = value(node.output);
  const Slot channel = mlp_gate(node, x, false, static_cast<Act>(node.attrs[0]), static_cast<Act>(node.attrs[1]));
  gated(x, &channel, nullptr, false, false, y);
}

void Builder::eca(const Node& node) {
  const Slot x = value(node.inputs[0]), y = value(node.output), channel = neighbour_gate(x, node.weights[0]);
  gated(x, &channel, nullptr, false, false, y);
}

void Builder::scse(const Node& node) {
  const Slot x = value(node.inputs[0]), y = value(node.output);
  const Slot channel = mlp_gate(node, x, false, static_cast<Act>(node.attrs[0]), Act::sigmoid);
  const Slot pixel = planes({x.channels, x.height, x.width}, 1, 1, 1);
  const float *taps = padded(node.weights[4].data, node.weights[4].count), bias = *node.weights[5].data;
  Step& step = add("pixel gate", {x}, pixel, [=, &glue = glue_](const Frame& f, Part part) {
    glue.pixel_pools({f.map(x), nullptr, taps, bias, nullptr, f.buffers[pixel.buffer], pixel.row}, part);
  });
  step.by_blocks = false;
  gated(x, &channel, &pixel, true, false, y);
}

void Builder::sa(const Node& node) {
  const Slot x = value(node.inputs[0]), y = value(node.output);
  const Slot pixel = pixel_gate(x, nullptr, node.weights[0], node.weights[1], node.attrs[1], node.attrs[2], node.attrs[0] == 1);
  gated(x, nullptr, &pixel, false, false, y);
}

void Builder::csa(const Node& node) {
  const Slot x = value(node.inputs[0]), y = value(node.output), channel = neighbour_gate(x, node.weights[0]);
  const Slot pixel = pixel_gate(x, nullptr, node.weights[1], node.weights[2], 1, 1, false);
  gated(x, &channel, &pixel, true, node.attrs[0] == 1, y);
}

void Builder::coordinate(const Node& node) {
  const Slot x = value(node.inputs[0]), y = value(node.output);
  const int mode = node.attrs[0], c = x.channels, m = static_cast<int>(node.weights[1].count);
  const bool means = mode != 1, maxima = mode != 0;
  const Slot row_sum = lines(c, x.height), row_max = lines(c, x.height), column_sum = lines(c, x.width), column_max = lines(c, x.width);
  Step& pools = add("line pools", {x, row_sum, row_max, column_sum, column_max}, x, [=, &glue = glue_](const Frame& f, Part part) {
    const auto at = [&](const Slot& s, bool wanted) { return wanted ? f.buffers[s.buffer] : nullptr; };
    glue.line_pools({f.map(x), {at(row_sum, means), at(row_max, maxima), at(column_sum, means), at(column_max, maxima)}}, part);
  });
  pools.by_rows = false;
  pools.bordered.clear();
  const Dense first = dense(node.weights[0], node.weights[1], c, x.height);
  const Dense gates[] = {dense(node.weights[2], node.weights[3], m, x.height), dense(node.weights[4], node.weights[5], m, x.width)};
  float* scales[2];
  for (int axis = 0; axis < 2; ++axis) {
    scales[axis] = program_.weights.take(static_cast<size_t>(blocks(c) * k_.lanes));
    std::fill(scales[axis], scales[axis] + c, 1.f / static_cast<float>(axis ? x.height : x.width));
  }
  const Slot pooled[] = {lines(c, x.height), lines(c, x.width)}, hidden[] = {lines(m, x.height), lines(m, x.width)};
  const Slot gate[] = {lines(c, x.height), lines(c, x.width)};
  const Slot sums[] = {row_sum, column_sum}, most[] = {row_max, column_max};
  for (int axis = 0; axis < 2; ++axis) {
    const Slot from = sums[axis], top = most[axis], mid = pooled[axis], inner = hidden[axis], to = gate[axis];
    const Dense last = gates[axis];
    const float* scale = scales[axis];
    Step& step = add("gate", {from, top, mid, inner}, to, [=, &k = k_, &glue = glue_](const Frame& f, Part) {
      const Part all{0, 1, 0, (c + k.lanes - 1) / k.lanes};
      if (means) glue.affine({f.map(from), f.map(mid), scale, nullptr, Act::none}, all);
      if (means && maxima) glue.binary({f.map(mid), f.map(top), f.map(mid), false, Act::none}, all);
      run_dense(k, first.weights, first.bias, first.panel, Act::hardswish, f.map(means ? mid : top), f.map(inner));
      run_dense(k, last.weights, last.bias, last.panel, Act::sigmoid, f.map(inner), f.map(to));
    });
    serial(step);
    step.macs = 2. * c * m * from.width;
  }
  const Slot rows = gate[0], columns = gate[1];
  add("gated", {x, rows, columns}, y, [=, &k = k_, &glue = glue_](const Frame& f, Part part) {
    Map r = f.map(rows);
    r.height = r.width, r.width = 1, r.row = k.lanes;
    glue.line_gated({f.map(x), f.map(y), r, f.map(columns)}, part);
  });
}

void Builder::dot_attention(const Node& node) {
  const Slot q = value(node.inputs[0]), kv = value(node.inputs[1]), y = value(node.output);
  const bool mean = node.attrs[0] == 1;
  const float scale = *node.weights[0].data;
  program_.scratch = std::max(program_.scratch, static_cast<size_t>(kv.height) * static_cast<size_t>(kv.width));
  Step& step = add("dot_attention", {q, kv}, y, [=, &glue = glue_](const Frame& f, Part part) {
    glue.dot_attention({f.map(q), f.map(kv), f.map(y), scale, mean, f.scratch}, mean ? Part{0, q.height, 0, 1} : part);
  });
  step.by_blocks = false, step.by_rows = !mean;
  step.macs = 2. * q.channels * q.height * q.width * kv.height * kv.width;
}

void Builder::additive_attention(const Node& node) {
  const Slot h = value(node.inputs[0]), x = value(node.inputs[1]), y = value(node.output);
  const int d = x.channels, e = static_cast<int>(node.weights[1].count);
  // W [x; h] as two convolutions, of which the second adds the first.
  const idx half = idx{e} * d;
  std::vector<float> parts[2] = {std::vector<float>(static_cast<size_t>(half)), std::vector<float>(static_cast<size_t>(half))};
  for (idx row = 0; row < e; ++row)
    for (int part = 0; part < 2; ++part)
      std::copy_n(node.weights[0].data + (2 * row + part) * d, d, parts[part].data() + row * d);
  const std::vector<float> none(static_cast<size_t>(e), 0.f);
  const int pixels = x.height * x.width;
  const Dense of_x = dense({parts[0].data(), half}, {none.data(), e}, d, pixels), of_h = dense({parts[1].data(), half}, node.weights[1], d, pixels);
  const Slot first = new_slot({e, x.height, x.width}), hidden = new_slot({e, x.height, x.width});
  const auto project = [&](const Slot& from, const Dense& dense, const Slot* residual, const Slot& to) {
    const bool added = residual != nullptr;
    const Slot before = added ? *residual : from;
    Step& step = add("conv", {from, before}, to, [=, &k = k_](const Frame& f, Part part) {
      Conv c{};
      c.x = f.map(from), c.y = f.map(to), c.window = kPoint, c.weights = dense.weights, c.panel = dense.panel;
      c.epilogue.bias = dense.bias;
      if (added) c.epilogue.residual = f.map(before);
      k.conv(c, part);
    });
    step.panel = dense.panel, step.macs = static_cast<double>(half) * from.height * from.width;
  };
  project(x, of_x, nullptr, first);
  project(h, of_h, &first, hidden);
  const float* v = padded(node.weights[2].data, node.weights[2].count);
  program_.scratch = std::max(program_.scratch, static_cast<size_t>(x.height) * static_cast<size_t>(x.width));
  Step& step = add("additive_attention", {x, hidden}, y, [=, &glue = glue_](const Frame& f, Part) {
    glue.additive_attention({f.map(x), f.map(hidden), f.map(y), v, f.scratch});
  });
  serial(step);
  step.macs = 1. * (d + e) * x.height * x.width;
}

}  // namespace ff::engine
