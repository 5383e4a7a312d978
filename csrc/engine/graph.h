// SPDX-License-Identifier: Apache-2.0
// A network as the engine's file holds it: float32 values and operations on maps of one image, nothing that depends on an
// instruction set. Vectors are maps of one pixel, tokens are the pixels of a map.
#pragma once
#include <cstdint>
#include <vector>

#include "core/types.h"

namespace ff::engine {

// Codes as in the file. Inputs; attributes; weights, after the name.
enum class Op : uint32_t {
  conv = 1,      // x; kh kw sh sw top left bottom right groups act; w (O, C / groups, kh, kw), bias (O); groups 1, or C = O
  max_pool = 2,  // x; kh kw sh sw top left bottom right
  avg_pool = 3,  // x; the same, count_include_pad
  global_pool = 4,     // x; kind -> (C, 1, 1)
  add = 5,             // a, b; act: each axis of b is a's or 1
  mul = 6,             // the same
  act = 7,             // x; act
  affine = 8,          // x; act; scale (C), shift (C)
  concat = 9,          // x...: along the channels
  channel_pool = 10,   // x; order: 0 [max; mean], 1 [mean; max], 2 mean, 3 max -> (2 or 1, H, W)
  line_pool = 11,      // x; axis, kind: axis 0 over W -> (C, H, 1), axis 1 over H -> (C, 1, W)
  cbam = 20,           // x; kh kw; w1 (M, C), b1 (M), w2 (C, M), b2 (C), spatial (1, 2, kh, kw) of [max; mean], bias (1)
  se = 21,             // x; act, gate; w1 (M, C), b1, w2 (C, M), b2
  eca = 22,            // x; ; w (k)
  scse = 23,           // x; act; w1, b1, w2, b2, spatial (C), bias (1)
  sa = 24,             // x; order (0 or 1), kh kw; w (2, kh, kw), bias (1)
  csa = 25,            // x; pool; w (k), spatial (2) of [max; mean], bias (1)
  coordinate = 26,     // x; mode: 0 mean, 1 max, 2 both; w (M, C), b (M), h (C, M), bias (C), w (C, M), bias (C)
  dot_attention = 27,  // q, kv; mean; scale (1) -> q's shape, or (D, 1, 1)
  additive_attention = 28,  // h, x; ; w (E, 2D) of [x; h], b (E), v (E), bias (1) -> (D, 1, 1)
};

constexpr int kMostOutputs = 64;

struct Shape {
  int channels, height, width;
};

// Least and largest number of a value.
struct Range {
  float least, most;
};

struct Weights {
  const float* data;  // into the file's bytes
  idx count;
};

struct Node {
  Op op;
  int output;
  std::vector<int> inputs;
  std::vector<int> attrs;
  std::vector<Weights> weights;
};

// Nodes in the order in which they run; every value but the input is the output of one node, which comes before its readers.
struct Graph {
  std::vector<Shape> values;
  std::vector<Range> ranges;  // of values, measured on real images; or none
  std::vector<Node> nodes;
  int input;
  std::vector<int> outputs;
};

const char* op_name(Op op);

// Throws std::invalid_argument, naming node, field, what was expected and what came, unless every node's attributes,
// weights and shapes agree and stay within what the engine can hold.
void check_graph(const Graph& graph);

}  // namespace ff::engine
