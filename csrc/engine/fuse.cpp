// SPDX-License-Identifier: Apache-2.0
// Which nodes run as one step: an affine map on the image, additions behind what makes one of their inputs, convolutions
// one after another with the gates in front of them.
#include <algorithm>

#include "engine/builder.h"

namespace ff::engine {
namespace {

// Rows from which on a product with gates is left to the convolution that reads it, which then is split by rows.
constexpr int kGatedRows = 14;

double map_bytes(const Shape& s) { return 4. * s.channels * s.height * s.width; }

}  // namespace

void Builder::count_uses() {
  uses_.assign(graph_.values.size(), 0), producer_.assign(graph_.values.size(), -1), reader_.assign(graph_.values.size(), -1);
  for (size_t i = 0; i < graph_.nodes.size(); ++i) {
    const Node& node = graph_.nodes[i];
    producer_[static_cast<size_t>(node.output)] = static_cast<int>(i);
    for (const int input : node.inputs) ++uses_[static_cast<size_t>(input)], reader_[static_cast<size_t>(input)] = static_cast<int>(i);
  }
  for (const int output : graph_.outputs) ++uses_[static_cast<size_t>(output)];
}

// The node that alone reads a value, or -1.
int Builder::only_reader(int value) const { return uses_[static_cast<size_t>(value)] == 1 ? reader_[static_cast<size_t>(value)] : -1; }

// An affine map that alone reads the input is applied while the image is read, which keeps padding the normalised zero.
void Builder::find_image() {
  image_ = graph_.input;
  const int reader = only_reader(graph_.input);
  if (options_.apart || reader < 0 || node_at(reader).op != Op::affine || node_at(reader).attrs[0] != 0) return;
  const Node& node = node_at(reader);
  image_ = node.output, done_[static_cast<size_t>(reader)] = true;
  const float *scale = node.weights[0].data, *shift = node.weights[1].data;
  const auto channels = static_cast<size_t>(node.weights[0].count);
  program_.floats = {{scale, scale + channels}, {shift, shift + channels}};
  Normalisation& bytes = program_.bytes;
  if (bytes.scale.empty()) bytes = {std::vector<float>(channels, 1.f), std::vector<float>(channels, 0.f)};
  for (size_t c = 0; c < channels; ++c) {
    bytes.scale[c] *= scale[c];
    bytes.shift[c] = bytes.shift[c] * scale[c] + shift[c];
  }
}

// Whether the node that makes `value` can add `other` to it.
bool Builder::adds(size_t producer, int value, int other) const {
  const Node& node = graph_.nodes[producer];
  if (node.output != value || sums_[producer].output >= 0) return false;
  switch (node.op) {
    case Op::conv: case Op::max_pool: case Op::avg_pool: case Op::cbam: case Op::se: case Op::eca: case Op::scse: case Op::sa: case Op::csa: break;
    default: return false;
  }
  if (other == graph_.input) return true;
  for (size_t i = 0; i < producer; ++i)
    if (graph_.nodes[i].output == other) return true;
  return false;
}

// Additions of equal shapes go to the node that makes one of the two, when nobody else reads that and the other is there.
void Builder::find_sums() {
  sums_.assign(graph_.nodes.size(), Sum{});
  if (options_.apart) return;
  for (size_t n = 0; n < graph_.nodes.size(); ++n) {
    const Node& node = graph_.nodes[n];
    if (node.op != Op::add) continue;
    const auto shape = [&](int i) { return graph_.values[static_cast<size_t>(node.inputs[static_cast<size_t>(i)])]; };
    if (shape(0).channels != shape(1).channels || shape(0).height != shape(1).height || shape(0).width != shape(1).width) continue;
    for (size_t producer = n; producer-- > 0 && !done_[n];) {
      for (size_t i = 0; i < 2 && !done_[n]; ++i) {
        const int made = node.inputs[i], other = node.inputs[1 - i];
        if (uses_[static_cast<size_t>(made)] != 1 || !adds(producer, made, other)) continue;
        if (node.attrs[0] != 0 && graph_.nodes[producer].op != Op::conv) continue;
        sums_[producer] = {other, node.output, static_cast<Act>(node.attrs[0])};
        done_[n] = true;
      }
    }
  }
}

// A convolution of which only the mean over the image is read is one of the means of what its taps read.
void Builder::find_means() {
  if (options_.apart || options_.type != Type::float32) return;
  for (const Node& node : graph_.nodes) {
    if (node.op != Op::global_pool || node.attrs[0] != 0) continue;
    const int conv = producer_[static_cast<size_t>(node.inputs[0])];
    if (conv < 0 || only_reader(node.inputs[0]) < 0 || std::count(planar_.begin(), planar_.end(), conv)) continue;
    const Node& before = node_at(conv);
    const auto index = static_cast<size_t>(conv);
    if (before.op == Op::conv && before.attrs[8] == 1 && before.attrs[9] == 0 && sums_[index].output < 0) done_[index] = true;
  }
}

// A 1×1 convolution of every pixel.
bool Builder::is_point(int node) const {
  if (node < 0) return false;
  const auto& a = node_at(node).attrs;
  return node_at(node).op == Op::conv && a[8] == 1 && std::all_of(a.begin(), a.begin() + 4, [](int v) { return v == 1; }) &&
         std::all_of(a.begin() + 4, a.begin() + 8, [](int v) { return v == 0; });
}

// A 1×1 convolution that is quicker by itself, by Strassen's algorithm.
bool Builder::halves(int node) const {
  if (options_.strict || options_.type != Type::float32 || !is_point(node) || sums_[static_cast<size_t>(node)].output >= 0) return false;
  const Shape &x = graph_.values[static_cast<size_t>(node_at(node).inputs[0])], &y = graph_.values[static_cast<size_t>(node_at(node).output)];
  return k_.strassen_panel(x.channels, y.channels, y.height, y.width) > 0;
}

void Builder::find_chains() {
  chains_.assign(graph_.nodes.size(), Chain{});
  deferred_.assign(graph_.nodes.size(), false);
  gates_.assign(graph_.values.size(), GateSlots{});
  if (options_.apart) return;
  const auto free = [&](int node) {
    return node >= 0 && !done_[static_cast<size_t>(node)] && !chains_[static_cast<size_t>(node)].any() && !std::count(planar_.begin(), planar_.end(), node);
  };
  const auto adds = [&](int node) { return sums_[static_cast<size_t>(node)].output >= 0; };
  const auto shape = [&](int value) { return graph_.values[static_cast<size_t>(value)]; };
  for (int i = 0; i < static_cast<int>(graph_.nodes.size()); ++i) {
    const Node& node = node_at(i);
    const int reader = only_reader(node.output);
    if (!is_point(reader) || !free(reader) || adds(i) || halves(reader)) continue;
    Chain& chain = chains_[static_cast<size_t>(reader)];
    if (node.op == Op::conv && node.attrs[8] > 1 && free(i)) {
      const int wide = node.inputs[0], before = producer_[static_cast<size_t>(wide)];
      const bool expands = is_point(before) && free(before) && !adds(before) && !halves(before) && only_reader(wide) == i && node_at(before).inputs[0] != image_;
      const double between = std::max(map_bytes(shape(node.output)), expands ? map_bytes(shape(wide)) : 0.);
      if (between < options_.strip_bytes) continue;
      if (is_low(reader) && !writes_low(i)) continue;  // a strip keeps what its last convolution reads, in that type
      chain = {expands ? before : -1, i, reader};
      done_[static_cast<size_t>(i)] = true;
      if (expands) done_[static_cast<size_t>(before)] = true;
    } else if ((node.op == Op::se || node.op == Op::eca || node.op == Op::coordinate) && shape(node.output).height >= kGatedRows) {
      deferred_[static_cast<size_t>(i)] = true;
      chain.project = reader;
    }
  }
}

}  // namespace ff::engine
