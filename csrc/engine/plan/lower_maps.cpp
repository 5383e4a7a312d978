// SPDX-License-Identifier: Apache-2.0
// Pooling and arithmetic as steps.
#include <algorithm>

#include "engine/plan/lower.h"

namespace ff::engine {
namespace {

void window_pool(Lowering& l, const Node& node, const char* name, const graph::Sliding& sliding, bool mean,
                 bool count_padding) {
  const Slot x = l.input(node), other = l.residual(node), y = l.output(node);
  WindowPool p{};
  p.window = sliding.window, p.bottom = sliding.bottom, p.right = sliding.right;
  p.mean = mean, p.count_padding = count_padding;
  l.add(name, x, y, {other}, [=, &glue = l.glue()](const Frame& f, const Map& from, const Map& to, Part part) {
    WindowPool call = p;
    call.x = from, call.y = to, call.residual = f.map(other);
    glue.window_pool(call, part);
  });
}

void binary(Lowering& l, const Node& node, const char* name, bool product, Act act) {
  const Slot a = l.input(node), b = l.input(node, 1), y = l.output(node);
  l.add(name, a, y, {b}, [=, &glue = l.glue()](const Frame& f, const Map& from, const Map& to, Part part) {
    glue.binary({from, f.map(b), to, product, act}, part);
  });
}

void affine(Lowering& l, const Node& node, const char* name, const float* scale, const float* shift, Act act) {
  const Slot x = l.input(node), y = l.output(node);
  l.add(name, x, y, {}, [=, &glue = l.glue()](const Frame&, const Map& from, const Map& to, Part part) {
    glue.affine({from, to, scale, shift, act}, part);
  });
}

}  // namespace

void lower(Lowering& l, const Node& node, const graph::MaxPool& op) {
  window_pool(l, node, op.kName, op.sliding, false, false);
}
void lower(Lowering& l, const Node& node, const graph::AvgPool& op) {
  window_pool(l, node, op.kName, op.sliding, true, op.count_padding);
}
void lower(Lowering& l, const Node& node, const graph::Add& op) { binary(l, node, op.kName, false, op.act); }
void lower(Lowering& l, const Node& node, const graph::Mul& op) { binary(l, node, op.kName, true, op.act); }
void lower(Lowering& l, const Node& node, const graph::Activate& op) {
  affine(l, node, op.kName, nullptr, nullptr, op.act);
}
void lower(Lowering& l, const Node& node, const graph::Affine& op) {
  const float *scale = l.padded(op.scale), *shift = l.padded(op.shift);
  affine(l, node, op.kName, scale, shift, op.act);
}

void lower(Lowering& l, const Node& node, const graph::GlobalPool& op) {
  const Slot x = l.input(node), y = l.output(node), pooled = l.lines(x.channels, x.height);
  const bool maximum = op.maximum;
  PoolSlots wanted;
  (maximum ? wanted.line_max : wanted.line_sum) = pooled;
  l.pool(node.inputs[0], wanted);
  const float scale = inverse(x.height, x.width);
  serial(l.add(op.kName, pooled, y, {}, [=, &glue = l.glue()](const Frame& f, const Map&, const Map& to, Part) {
    const float* from = f.buffer(pooled);
    glue.reduce({maximum ? nullptr : from, maximum ? from : nullptr, pooled.width, scale, false, to});
  }));
}

void lower(Lowering& l, const Node& node, const graph::LinePool& op) {
  const Slot x = l.input(node), y = l.output(node);
  const bool columns = op.columns, maximum = op.maximum;
  const Slot pooled = l.lines(x.channels, columns ? x.width : x.height);
  PoolSlots wanted;
  (columns ? maximum ? wanted.column_max : wanted.column_sum : maximum ? wanted.line_max : wanted.line_sum) = pooled;
  l.pool(node.inputs[0], wanted);
  float* scale = l.packed(l.padded_size(x.channels));
  std::fill(scale, scale + x.channels, maximum ? 1.f : 1.f / static_cast<float>(columns ? x.height : x.width));
  l.add(op.kName, pooled, y, {}, [=, &glue = l.glue()](const Frame&, const Map& from, const Map& to, Part part) {
    Map lines = from;
    if (!columns) lines.width = 1, lines.height = pooled.width, lines.row = pooled.pixel;
    glue.affine({lines, to, scale, nullptr, Act::none}, part);
  });
}

// What does not lie in the map already is copied there, many inputs by several steps.
void lower(Lowering& l, const Node& node, const graph::Concat& op) {
  const Slot y = l.output(node);
  std::vector<Slot> inputs;
  std::vector<graph::Channels::Source> from;
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    const Slot x = l.input(node, i);
    const auto first = static_cast<int>(from.size());
    const bool there = x.buffer == y.buffer && first % y.pixel == 0 && x.origin == y.origin + first / y.pixel * y.block;
    if (!there && inputs.size() == graph::Channels::kMostInputs) {
      std::vector<graph::Channels::Source> now = from;
      now.resize(static_cast<size_t>(y.channels), {kThere - 1, 0});
      take_channels(l, op.kName, y, inputs, now);
      for (size_t c = 0; c < from.size(); ++c) from[c] = {kThere, static_cast<int>(c)};
      inputs.clear();
    }
    for (int c = 0; c < x.channels; ++c)
      from.push_back(there ? graph::Channels::Source{kThere, first + c}
                           : graph::Channels::Source{static_cast<int>(inputs.size()), c});
    if (!there) inputs.push_back(x);
  }
  if (!inputs.empty()) take_channels(l, op.kName, y, inputs, from);
}

// Two planes, then the planes as channels of a map.
void lower(Lowering& l, const Node& node, const graph::ChannelPool& op) {
  const Slot x = l.input(node), y = l.output(node);
  const int order = op.order;
  const Slot pair = l.planes({x.channels, x.height, x.width}, 2, 1, 1);
  Step& step =
      l.add(op.kName, x, y, {pair}, [=, &glue = l.glue()](const Frame& f, const Map& from, const Map& to, Part part) {
        float *first = f.buffer(pair), *second = first + pair.block;
        PixelPools p{};
        p.x = from, p.row = pair.row;
        p.max = order == 0 || order == 3 ? first : order == 1 ? second : nullptr;
        p.mean = order == 0 ? second : order == 3 ? nullptr : first;
        glue.pixel_pools(p, part);
        for (int row = part.y0; row < part.y1; ++row)
          for (int i = 0; i < to.width; ++i) {
            float* pixel = to.data + row * to.row + i * y.pixel;
            std::fill(pixel, pixel + y.pixel, 0.f);
            for (int c = 0; c < to.channels; ++c) pixel[c] = first[c * pair.block + row * pair.row + i];
          }
      });
  step.by_blocks = false;
}

}  // namespace ff::engine
