// SPDX-License-Identifier: Apache-2.0
#include "engine/rewrite/rewrite.h"

#include <algorithm>

namespace ff::engine {
namespace {

constexpr int kFewChannels = 8;
constexpr int kMostSide = 16;  // columns of padding of planes: a cache line

bool same_shape(const Shape& a, const Shape& b) {
  return a.channels == b.channels && a.height == b.height && a.width == b.width;
}

template <class T>
graph::Stage<T> stage_of(const Node& node) {
  return {std::get<T>(node.op), node.inputs[0], node.output, node.origin};
}

template <class... Ts>
bool holds_any(const Node& node) {
  return (std::holds_alternative<Ts>(node.op) || ...);
}

// Whether what a node makes can have a map added to it, besides a convolution.
bool adds_after(const Node& node) {
  using namespace graph;
  return holds_any<MaxPool, AvgPool, Cbam, Se, Eca, Scse, Sa, Csa>(node);
}

// A convolution that planes can do.
const graph::Conv* plane_conv(const Graph& graph, int index, int lanes) {
  const auto* conv = as<graph::Conv>(graph, index);
  if (!conv) return nullptr;
  const Node& node = graph.nodes[static_cast<size_t>(index)];
  const Shape &x = graph.shape(node.inputs[0]), &y = graph.shape(node.output);
  const Window& w = conv->sliding.window;
  const bool fits = w.sh == 1 && w.sw == 1 && conv->groups == 1 && !conv->dilated() &&
                    std::max(x.channels, y.channels) <= kFewChannels && y.width >= 2 * lanes &&
                    std::max(w.left, conv->sliding.right) <= kMostSide && node.residual < 0;
  return fits ? conv : nullptr;
}

}  // namespace

Uses::Uses(const Graph& graph) : maker_(graph.values.size(), -1), reader_(maker_), count_(graph.values.size()) {
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const Node& node = graph.nodes[i];
    maker_[static_cast<size_t>(node.output)] = static_cast<int>(i);
    for (const int input : node.inputs)
      ++count_[static_cast<size_t>(input)], reader_[static_cast<size_t>(input)] = static_cast<int>(i);
    if (node.residual >= 0) ++count_[static_cast<size_t>(node.residual)];
  }
  for (const int output : graph.outputs) ++count_[static_cast<size_t>(output)];
}

Graph without(Graph graph, const std::vector<bool>& gone) {
  size_t kept = 0;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    if (gone[i]) continue;
    if (kept != i) graph.nodes[kept] = std::move(graph.nodes[i]);
    ++kept;
  }
  graph.nodes.resize(kept);
  return graph;
}

bool is_point(const graph::Conv& conv) {
  const Window& w = conv.sliding.window;
  return conv.groups == 1 && w.kh == 1 && w.kw == 1 && w.sh == 1 && w.sw == 1 && !w.top && !w.left &&
         !conv.sliding.bottom && !conv.sliding.right;
}

bool halves(const graph::Conv& conv, const Shape& x, const Shape& y, bool has_residual, const Target& target) {
  return !target.strict && target.type == Type::float32 && is_point(conv) && !has_residual &&
         target.kernels.strassen_panel(x.channels, y.channels, y.height, y.width) > 0;
}

Graph normalise_input(Graph graph, Normalisation& image) {
  const int reader = Uses(graph).only_reader(graph.input);
  const auto* affine = as<graph::Affine>(graph, reader);
  if (!affine || affine->act != Act::none) return graph;
  const auto channels = static_cast<size_t>(affine->scale.count);
  image = {{affine->scale.data, affine->scale.data + channels}, {affine->shift.data, affine->shift.data + channels}};
  graph.input = graph.nodes[static_cast<size_t>(reader)].output;
  graph.nodes.erase(graph.nodes.begin() + reader);
  return graph;
}

Graph take_sums(Graph graph) {
  const Uses uses(graph);
  std::vector<bool> gone(graph.nodes.size());
  const auto takes = [&](int maker, int other, Act act) {
    if (maker < 0) return false;
    const Node& node = graph.nodes[static_cast<size_t>(maker)];
    if (node.residual >= 0) return false;
    const bool conv = std::holds_alternative<graph::Conv>(node.op);
    if (!conv && (act != Act::none || !adds_after(node))) return false;
    return uses.maker(other) < maker;  // is there when it is due
  };
  for (size_t n = 0; n < graph.nodes.size(); ++n) {
    const auto* add = std::get_if<graph::Add>(&graph.nodes[n].op);
    if (!add) continue;
    const Act act = add->act;
    const std::vector<int> inputs = graph.nodes[n].inputs;
    if (!same_shape(graph.shape(inputs[0]), graph.shape(inputs[1]))) continue;
    // The later of the two makers first.
    const size_t later = uses.maker(inputs[1]) > uses.maker(inputs[0]);
    for (const size_t i : {later, 1 - later}) {
      const int made = inputs[i], other = inputs[1 - i], maker = uses.maker(made);
      if (uses.count(made) != 1 || !takes(maker, other, act)) continue;
      Node& node = graph.nodes[static_cast<size_t>(maker)];
      node.residual = other, node.after = act, node.output = graph.nodes[n].output;
      gone[n] = true;
      break;
    }
  }
  return without(std::move(graph), gone);
}

Graph take_planes(Graph graph, const Target& target) {
  const int lanes = target.kernels.lanes;
  if (lanes < kFewChannels) return graph;
  const Uses uses(graph);
  std::vector<int> nodes;
  graph::Planar planar;
  for (int i = uses.only_reader(graph.input); plane_conv(graph, i, lanes);
       i = uses.only_reader(graph.nodes[static_cast<size_t>(i)].output)) {
    nodes.push_back(i);
    planar.convs.push_back(stage_of<graph::Conv>(graph.nodes[static_cast<size_t>(i)]));
  }
  if (nodes.empty()) return graph;
  const int next = uses.only_reader(graph.nodes[static_cast<size_t>(nodes.back())].output);
  if (as<graph::Cbam>(graph, next) && graph.nodes[static_cast<size_t>(next)].residual < 0) {
    nodes.push_back(next);
    planar.cbam = stage_of<graph::Cbam>(graph.nodes[static_cast<size_t>(next)]);
  }
  if (nodes.size() < 2) return graph;
  std::vector<bool> gone(graph.nodes.size());
  for (size_t i = 0; i + 1 < nodes.size(); ++i) gone[static_cast<size_t>(nodes[i])] = true;
  Node& last = graph.nodes[static_cast<size_t>(nodes.back())];
  last.op = std::move(planar), last.inputs = {graph.input};
  return without(std::move(graph), gone);
}

Graph take_means(Graph graph, const Target& target) {
  if (target.type != Type::float32) return graph;
  const Uses uses(graph);
  std::vector<bool> gone(graph.nodes.size());
  for (Node& node : graph.nodes) {
    const auto* pool = std::get_if<graph::GlobalPool>(&node.op);
    if (!pool || pool->maximum) continue;
    const int maker = uses.maker(node.inputs[0]);
    const auto* conv = as<graph::Conv>(graph, maker);
    if (!conv || uses.only_reader(node.inputs[0]) < 0 || conv->groups != 1 || conv->dilated() || conv->act != Act::none)
      continue;
    const Node& before = graph.nodes[static_cast<size_t>(maker)];
    if (before.residual >= 0) continue;
    const auto stage = stage_of<graph::Conv>(before);
    node.op = graph::MeanConv{stage}, node.inputs = {stage.input};
    gone[static_cast<size_t>(maker)] = true;
  }
  return without(std::move(graph), gone);
}

Graph rewritten(Graph graph, const Target& target, Normalisation& image) {
  graph = normalise_input(std::move(graph), image);
  graph = take_channels(std::move(graph));
  graph = take_sums(std::move(graph));
  graph = take_planes(std::move(graph), target);
  graph = take_means(std::move(graph), target);
  return take_strips(std::move(graph), target);
}

}  // namespace ff::engine
