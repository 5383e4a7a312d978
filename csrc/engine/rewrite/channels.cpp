// SPDX-License-Identifier: Apache-2.0
#include "engine/graph/gathers.h"
#include "engine/rewrite/rewrite.h"

namespace ff::engine {
namespace {

using graph::Channels;

// The channels of x that a gather takes, where it leaves pixels as they are; else none.
std::vector<int> channels_of(const graph::Gather& gather, const Shape& x, const Shape& y) {
  if (x.height != y.height || x.width != y.width) return {};
  ByPixels by;
  if (!by.fits(sources(gather, x, y), x, y)) return {};
  for (int i = 0; i < y.height; ++i)
    if (by.rows[static_cast<size_t>(i)] != i) return {};
  for (int i = 0; i < y.width; ++i)
    if (by.columns[static_cast<size_t>(i)] != i) return {};
  for (const int channel : by.channels)
    if (channel < 0) return {};
  return by.channels;
}

// All channels of a value: of the inputs of the concatenation or of the other Channels that make it, else its own.
Channels all_channels(const Graph& graph, int maker, int value, std::vector<int>& inputs) {
  Channels all;
  const auto add = [&](int input, int count) {
    for (int c = 0; c < count; ++c) all.from.push_back({input, c});
  };
  if (const auto* other = as<Channels>(graph, maker)) {
    inputs = graph.nodes[static_cast<size_t>(maker)].inputs;
    return *other;
  }
  inputs = {value};
  if (as<graph::Concat>(graph, maker)) {
    const auto& joined = graph.nodes[static_cast<size_t>(maker)].inputs;
    if (joined.size() <= Channels::kMostInputs) inputs = joined;
  }
  for (size_t i = 0; i < inputs.size(); ++i) add(static_cast<int>(i), graph.shape(inputs[i]).channels);
  return all;
}

// A node becomes Channels of those inputs that it takes any of.
void become(Node& node, const std::vector<Channels::Source>& from, const std::vector<int>& inputs) {
  Channels taken;
  node.inputs.clear();
  std::vector<int> numbers(inputs.size(), -1);
  for (const Channels::Source& s : from) {
    int& number = numbers[static_cast<size_t>(s.input)];
    if (number < 0)
      number = static_cast<int>(node.inputs.size()), node.inputs.push_back(inputs[static_cast<size_t>(s.input)]);
    taken.from.push_back({number, s.channel});
  }
  node.op = std::move(taken);
}

// Without the concatenations and Channels that nobody reads any more.
Graph without_unread(Graph graph) {
  std::vector<int> readers(graph.values.size());
  for (const Node& node : graph.nodes) {
    for (const int input : node.inputs) ++readers[static_cast<size_t>(input)];
    if (node.residual >= 0) ++readers[static_cast<size_t>(node.residual)];
  }
  for (const int output : graph.outputs) ++readers[static_cast<size_t>(output)];
  std::vector<bool> gone(graph.nodes.size());
  for (size_t i = graph.nodes.size(); i-- > 0;) {
    const Node& node = graph.nodes[i];
    const bool moves = std::holds_alternative<Channels>(node.op) || std::holds_alternative<graph::Concat>(node.op);
    if (!moves || readers[static_cast<size_t>(node.output)]) continue;
    gone[i] = true;
    for (const int input : node.inputs) --readers[static_cast<size_t>(input)];
  }
  return without(std::move(graph), gone);
}

}  // namespace

Graph take_channels(Graph graph) {
  const Uses uses(graph);
  for (Node& node : graph.nodes) {
    const auto* gather = std::get_if<graph::Gather>(&node.op);
    if (!gather) continue;
    const int x = node.inputs[0];
    const std::vector<int> channels = channels_of(*gather, graph.shape(x), graph.shape(node.output));
    if (channels.empty()) continue;
    std::vector<int> inputs;
    const Channels all = all_channels(graph, uses.maker(x), x, inputs);
    std::vector<Channels::Source> from;
    for (const int channel : channels) from.push_back(all.from[static_cast<size_t>(channel)]);
    become(node, from, inputs);
  }
  return without_unread(std::move(graph));
}

}  // namespace ff::engine
