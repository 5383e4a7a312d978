// SPDX-License-Identifier: Apache-2.0
// Attention over the pixels of a map as steps.
#include <algorithm>

#include "engine/plan/lower.h"

namespace ff::engine {

void lower(Lowering& l, const Node& node, const graph::DotAttention& op) {
  const Slot q = l.input(node), kv = l.input(node, 1), y = l.output(node);
  const bool mean = op.mean;
  const float scale = *op.scale.data;
  l.want_scratch(l.glue().dot_scratch(q.channels, kv.height * kv.width));
  Step& step =
      l.add(op.kName, q, y, {kv}, [=, &glue = l.glue()](const Frame& f, const Map& from, const Map& to, Part part) {
        glue.dot_attention({from, f.map(kv), to, scale, mean, f.scratch}, mean ? Part{0, from.height, 0, 1} : part);
      });
  step.by_blocks = false, step.by_rows = !mean;
  step.macs = 2. * q.channels * q.height * q.width * kv.height * kv.width;
}

void lower(Lowering& l, const Node& node, const graph::AdditiveAttention& op) {
  const Slot h = l.input(node), x = l.input(node, 1), y = l.output(node);
  const int d = x.channels, e = static_cast<int>(op.bias.count), pixels = x.height * x.width;
  // weight · [x; h] as two convolutions, of which the second adds the first.
  const idx half = idx{e} * d;
  std::vector<float> parts[2] = {std::vector<float>(static_cast<size_t>(half)),
                                 std::vector<float>(static_cast<size_t>(half))};
  for (idx row = 0; row < e; ++row)
    for (int part = 0; part < 2; ++part)
      std::copy_n(op.weight.data + (2 * row + part) * d, d, parts[part].data() + row * d);
  const std::vector<float> none(static_cast<size_t>(e), 0.f);
  const Slot first = l.new_map({e, x.height, x.width}), hidden = l.new_map({e, x.height, x.width});
  const auto project = [&](const Slot& from, const Dense& dense, const Slot& residual, const Slot& to) {
    Step& step = l.add("conv", from, to, {residual},
                       [=, &k = l.kernels()](const Frame& f, const Map& in, const Map& out, Part part) {
                         Conv c{};
                         c.x = in, c.y = out, c.window = kPoint, c.weights = dense.weights, c.panel = dense.panel;
                         c.epilogue.bias = dense.bias, c.epilogue.residual = f.map(residual);
                         k.conv(c, part);
                       });
    step.panel = dense.panel, step.macs = static_cast<double>(half) * from.height * from.width;
  };
  project(x, l.dense({parts[0].data(), half}, {none.data(), e}, d, pixels), kNoSlot, first);
  project(h, l.dense({parts[1].data(), half}, op.bias, d, pixels), first, hidden);
  const float* v = l.padded(op.score);
  l.want_scratch(static_cast<size_t>(pixels + l.kernels().lanes));
  Step& step =
      l.add(op.kName, x, y, {hidden}, [=, &glue = l.glue()](const Frame& f, const Map& from, const Map& to, Part) {
        glue.additive_attention({from, f.map(hidden), to, v, f.scratch});
      });
  serial(step);
  step.macs = 1. * (d + e) * pixels;
}

}  // namespace ff::engine
