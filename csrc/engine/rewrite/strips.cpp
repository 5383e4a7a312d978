// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "engine/rewrite/rewrite.h"

namespace ff::engine {
namespace {

// Rows from which on a product with gates is left to the convolution that reads it, which then is split by rows.
constexpr int kGatedRows = 14;

double map_bytes(const Shape& s) { return 4. * s.channels * s.height * s.width; }

// Whether the product of gates with their map may be left to its reader; says so to the node.
bool leave_product(Node& node) {
  const auto mark = [](auto* gate) {
    if (gate) gate->by_reader = true;
    return gate != nullptr;
  };
  return mark(std::get_if<graph::Se>(&node.op)) || mark(std::get_if<graph::Eca>(&node.op)) ||
         mark(std::get_if<graph::Coordinate>(&node.op));
}

class StripFinder {
 public:
  StripFinder(Graph graph, const Target& target)
      : graph_(std::move(graph)), target_(target), uses_(graph_), gone_(graph_.nodes.size()) {}

  Graph run() && {
    for (int i = 0; i < static_cast<int>(graph_.nodes.size()); ++i) {
      const int reader = uses_.only_reader(at(i).output);
      if (!free_point(reader) || at(i).residual >= 0) continue;
      const auto* conv = as<graph::Conv>(graph_, i);
      if (conv && conv->depthwise() && conv->dilated()) continue;
      if (conv && conv->depthwise())
        separable(i, reader);
      else if (graph_.shape(at(i).output).height >= kGatedRows && leave_product(at(i)))
        become(reader, {std::nullopt, std::nullopt, stage(reader)});
    }
    return without(std::move(graph_), gone_);
  }

 private:
  Node& at(int i) { return graph_.nodes[static_cast<size_t>(i)]; }
  graph::Stage<graph::Conv> stage(int i) {
    return {std::get<graph::Conv>(at(i).op), at(i).inputs[0], at(i).output, at(i).origin};
  }

  // A 1×1 convolution that is not better off by itself.
  bool free_point(int i) {
    const auto* conv = as<graph::Conv>(graph_, i);
    return conv && is_point(*conv) &&
           !halves(*conv, graph_.shape(at(i).inputs[0]), graph_.shape(at(i).output), at(i).residual >= 0, target_);
  }
  // A node becomes strips, which read what the first of them read.
  void become(int i, graph::Strips strips) {
    at(i).inputs = {strips.expand      ? strips.expand->input
                    : strips.depthwise ? strips.depthwise->input
                                       : strips.project->input};
    at(i).op = std::move(strips);
  }

  // A depthwise convolution and its reader; what makes its input too, where that is a 1×1 convolution nobody else
  // reads.
  void separable(int i, int reader) {
    const int expanded = at(i).inputs[0], expansion = uses_.maker(expanded);
    const bool expands = free_point(expansion) && at(expansion).residual < 0 && uses_.only_reader(expanded) == i &&
                         at(expansion).inputs[0] != graph_.input;
    const double between =
        std::max(map_bytes(graph_.shape(at(i).output)), expands ? map_bytes(graph_.shape(expanded)) : 0.);
    if (between < target_.strip_bytes) return;
    const auto depthwise = stage(i), project = stage(reader);
    // A strip keeps what its last convolution reads, in that type.
    if (computes_low(project.op, target_.type, graph_.shape(project.output)) &&
        !writes_low(depthwise.op, false, Act::none))
      return;
    graph::Strips strips{std::nullopt, depthwise, project};
    gone_[static_cast<size_t>(i)] = true;
    if (expands) strips.expand = stage(expansion), gone_[static_cast<size_t>(expansion)] = true;
    become(reader, std::move(strips));
  }

  Graph graph_;
  const Target& target_;
  const Uses uses_;
  std::vector<bool> gone_;
};

}  // namespace

Graph take_strips(Graph graph, const Target& target) { return StripFinder(std::move(graph), target).run(); }

}  // namespace ff::engine
