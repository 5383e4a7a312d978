// SPDX-License-Identifier: Apache-2.0
// Random networks over all of the engine's operations, with the neighbourhoods in which steps are fused.
#pragma once
#include "engine_network_parts.h"

namespace {

class Networks : private NetworkParts {
 public:
  explicit Networks(uint64_t seed) : NetworkParts(seed) {}
  using NetworkParts::below;
  using NetworkParts::unit;

  // large: maps that do not fit into a cache, so that strips have several groups of rows.
  Net next(bool large) {
    net_ = Net{}, most_ = large ? 120000 : 6000;
    const int side = large ? 40 + below(30) : 3 + below(22);
    net_.values.push_back({1 + below(4), side, large ? 40 + below(30) : below(3) ? side : 3 + below(40)});
    if (below(3) == 0) affine(0, 0);
    for (int n = 2 + below(large ? 5 : 9); n > 0; --n) below(3) ? anything() : neighbourhood();
    std::vector<bool> read(net_.values.size());
    for (const NetNode& node : net_.nodes)
      for (const uint32_t i : node.inputs) read[i] = true;
    for (uint32_t v = 1; v < read.size(); ++v)
      if (!read[v] || below(12) == 0) net_.outputs.push_back(v);
    if (net_.outputs.empty()) net_.outputs.push_back(last());
    return net_;
  }

 private:
  void anything() {
    const uint32_t x = some();
    if (below(3) == 0) return tensor(x);
    switch (below(16)) {
      case 0:
      case 1:
      case 2: conv(x, channels(), sides(), act()); break;
      case 3:
      case 4: depthwise(x, sides(), act()); break;
      case 5: point(x, channels(), act()); break;
      case 6: binary(x, Op::add, below(2)); break;
      case 7: binary(x, below(2) ? Op::mul : Op::add, true); break;
      case 8: pool(x, below(2)); break;
      case 9: below(2) ? global_pool(x) : line_pool(x); break;
      case 10: below(2) ? affine(x, act()) : add(Op::act, {x}, {below(7)}, {}, shape(x)); break;
      case 11: concat(x); break;
      case 12: {
        const int order = below(4);
        add(Op::channel_pool, {x}, {order}, {}, {order < 2 ? 2 : 1, shape(x).height, shape(x).width});
        break;
      }
      case 13: attention(x); break;
      default: gate(x, below(7));
    }
  }

  // What makes a map, and then what may be added to, pooled or gated with it.
  uint32_t maker(uint32_t x) {
    switch (below(5)) {
      case 0: return depthwise(x, sides(), act());
      case 1: return pool(x, below(2));
      case 2: return gate(x, below(7));
      case 3: return conv(x, 16 + 16 * below(2), {3, 3, 1, 1, 1, 1, 1, 1}, act());
      default: return conv(x, channels(), sides(), act());
    }
  }
  // A map of x's shape by anything that may take over an addition.
  uint32_t like(uint32_t x) {
    const int k = 3 + 2 * below(2);
    const Sides s{k, k, 1, 1, k / 2, k / 2, k / 2, k / 2};
    const Shape& y = shape(x);
    switch (below(5)) {
      case 0: return add(Op::max_pool, {x}, {k, k, 1, 1, k / 2, k / 2, k / 2, k / 2}, {}, y);
      case 1: return gate(x, below(5));
      case 2: return depthwise(x, s, act());
      default: return below(2) ? conv(x, y.channels, s, act()) : point(x, y.channels, act());
    }
  }

  void neighbourhood() {
    const uint32_t x = some();
    switch (below(8)) {
      case 0:
      case 6: {  // an inverted bottleneck
        const uint32_t wide = below(3) ? point(x, 16 + 8 * below(5), act()) : x;
        const int k = 3 + 2 * below(2), stride = 1 + below(2);
        uint32_t deep = depthwise(wide, {k, k, stride, stride, k / 2, k / 2, k / 2, k / 2}, act());
        if (below(2)) deep = gate(deep, below(3) ? 1 + below(2) : 6);
        const uint32_t y = point(deep, below(2) ? shape(x).channels : channels(), below(2) ? 0 : act());
        if (below(2)) binary(y, Op::add, false);
        break;
      }
      case 1: {  // a map that is pooled in several ways
        const uint32_t y = maker(x);
        for (int n = 1 + below(4); n > 0; --n) below(3) ? line_pool(y) : below(2) ? global_pool(y) : gate(y, below(7));
        break;
      }
      case 2:
      case 7: {  // sums by what makes one of their terms
        const uint32_t before = below(2) ? conv(x, channels(), sides(), act()) : x, a = like(before),
                       b = below(2) ? like(a) : like(before);
        add(Op::add, {below(2) ? a : b, below(2) ? b : a}, {below(3) ? 0 : below(7)}, {}, shape(before));
        break;
      }
      case 3: {  // planes
        uint32_t y = conv(x, 1 + below(8), {3, 3, 1, 1, 1, 1, 1, 1}, act());
        if (below(2)) y = conv(y, 1 + below(8), {3, 3, 1, 1, 1, 1, 1, 1}, act());
        if (below(2)) gate(y, 0);
        break;
      }
      case 4: {  // a convolution of which the mean is taken
        const uint32_t y = conv(x, channels(), sides(), 0);
        add(Op::global_pool, {y}, {0}, {}, {shape(y).channels, 1, 1});
        break;
      }
      default: {  // many channels, where Strassen's algorithm pays
        const uint32_t y = below(3) ? x : point(pool(x, false), 256, act());
        if (shape(y).channels == 256) point(y, 256, act());
      }
    }
  }
};

inline std::vector<uint8_t> file_of(const Net& net, const std::vector<Range>& ranges) {
  const auto u = [](int v) { return static_cast<uint32_t>(v); };
  EngineFile file(u(net.values[0].channels), u(net.values[0].height), u(net.values[0].width));
  for (size_t i = 0; i < net.nodes.size(); ++i) {
    const Shape& y = net.values[i + 1];
    file.add_with(net.nodes[i].op, net.nodes[i].inputs, net.nodes[i].attrs, net.nodes[i].weights, u(y.channels),
                  u(y.height), u(y.width));
  }
  return file.bytes(net.outputs, ranges);
}

}  // namespace
