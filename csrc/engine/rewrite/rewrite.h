// SPDX-License-Identifier: Apache-2.0
// Rewrites: each takes a graph and gives one with the same result in which some nodes run as one. Values keep their
// numbers; those that nobody makes any more are not read either.
#pragma once
#include "engine/graph/graph.h"

namespace ff::engine {

// A map between two convolutions that is larger than this does not stay in a core's cache: then they run as strips.
constexpr double kStripBytes = 768 * 1024;

// What a plan is built for.
struct Target {
  const Kernels& kernels;
  Type type;           // what dense convolutions compute in
  bool strict;         // no Winograd and no Strassen convolutions
  double strip_bytes;
};

// value · scale + shift of each channel of the input image; empty: as it is.
struct Normalisation {
  std::vector<float> scale, shift;
};

// Who makes and reads the values of a graph.
class Uses {
 public:
  explicit Uses(const Graph& graph);
  // The node that makes a value, -1: none (the input).
  int maker(int value) const { return maker_[static_cast<size_t>(value)]; }
  // How often a value is read, by nodes or as an output.
  int count(int value) const { return count_[static_cast<size_t>(value)]; }
  // The node that alone reads a value, as its input and not as its residual; or -1.
  int only_reader(int value) const { return count(value) == 1 ? reader_[static_cast<size_t>(value)] : -1; }

 private:
  std::vector<int> maker_, reader_, count_;
};

// The graph without the nodes that are marked.
Graph without(Graph graph, const std::vector<bool>& gone);

// The operation of a node, if it is a T.
template <class T>
const T* as(const Graph& graph, int node) {
  return node < 0 ? nullptr : std::get_if<T>(&graph.nodes[static_cast<size_t>(node)].op);
}

// A 1×1 convolution of every pixel.
bool is_point(const graph::Conv& conv);
// Whether a 1×1 convolution of maps of such shapes is quicker by itself, by Strassen's algorithm.
bool halves(const graph::Conv& conv, const Shape& x, const Shape& y, bool has_residual, const Target& target);

// An affine map that alone reads the input becomes part of reading the image, which keeps padding the normalised zero.
Graph normalise_input(Graph graph, Normalisation& image);
// Gathers that only choose channels read what concatenations and each other would have copied for them.
Graph take_channels(Graph graph);
// Additions of equal shapes go to the node that makes one of the two, when nobody else reads that and the other is
// there.
Graph take_sums(Graph graph);
// The start of a network whose maps have few channels and many pixels, as planes.
Graph take_planes(Graph graph, const Target& target);
// A convolution of which only the mean over the image is read is one of the means of what its taps read.
Graph take_means(Graph graph, const Target& target);
// Convolutions one after another, with the gates in front of them, as strips.
Graph take_strips(Graph graph, const Target& target);

// All of them in order; `image` is what reading the image does to it.
Graph rewritten(Graph graph, const Target& target, Normalisation& image);

// Low precision. What dense convolutions take a value in: the plan's type, but for the image, and in a plan of bytes
// for what stays bfloat16 or has no range.
Type taken_as(const Graph& graph, int value, const Target& target);
// Whether a convolution of what is taken so computes in that; of vectors low precision is not worth it.
bool computes_low(const graph::Conv& conv, Type taken, const Shape& y);
// Whether a convolution's kernel can write anything but float32: its last activation is then in registers.
bool writes_low(const graph::Conv& conv, bool computes_low, Act after);
// Which values are kept as bfloat16 or bytes. Throws std::invalid_argument where the type is not there.
std::vector<Type> value_types(const Graph& graph, const Target& target);

}  // namespace ff::engine
