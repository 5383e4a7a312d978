// SPDX-License-Identifier: Apache-2.0
// A network as a plan is built from it: values, and the nodes that make them, in the order in which they run.
#pragma once
#include <string>
#include <vector>

#include "engine/graph/ops.h"

namespace ff::engine {

constexpr int kMostOutputs = 64;

// Least and largest number of a value.
struct Range {
  float least, most;
};

struct Node {
  graph::AnyOp op;
  std::vector<int> inputs;
  int output;
  int origin;  // its number in the file
  // A rewrite's: after(op + residual), where there is one.
  int residual = -1;
  Act after = Act::none;
};

// Every value but the input is the output of one node, which comes before its readers.
struct Graph {
  std::vector<Shape> values;
  std::vector<Range> ranges;  // of values, measured on real images or known to a quantised file; or none
  std::vector<bool> halves;   // values that a plan of bytes keeps as bfloat16; or none
  // By the number in the file of a convolution: what it adds to its biases where it computes with bytes; or none.
  std::vector<std::vector<float>> corrections;
  std::vector<Node> nodes;
  int input;
  std::vector<int> outputs;

  const Shape& shape(int value) const { return values[static_cast<size_t>(value)]; }
  // Whether a value may be kept as bytes: a range of no width says that a file knows none.
  bool fits_bytes(int value) const {
    const Range& r = ranges[static_cast<size_t>(value)];
    return r.least < r.most;
  }
  bool stays_half(int value) const { return !halves.empty() && halves[static_cast<size_t>(value)]; }
};

// The operation and its parts as the file has them. Throws std::invalid_argument, which begins with `where`, if any,
// and the operation's name, for a code, a count or an attribute that is none.
graph::AnyOp make_op(uint32_t code, const std::vector<int>& attrs, const std::vector<Weights>& weights,
                     const std::string& where);

// The shape of what an operation makes of maps of such shapes. Throws std::invalid_argument, naming the part, what was
// expected and what came, where these and its weights do not agree. Weights may lack their data.
Shape output_shape(const graph::AnyOp& op, const std::vector<Shape>& inputs, const std::string& where);

// Throws std::invalid_argument unless all shapes, and the order of the nodes, are right and within what the engine
// holds.
void check_graph(const Graph& graph);

// The operations as the file knows them: names of attributes and weights in order.
struct OpNames {
  uint32_t code;
  std::string name;
  int inputs;  // -1: one or more
  std::vector<std::string> attrs, weights;
};
std::vector<OpNames> op_table();

}  // namespace ff::engine
