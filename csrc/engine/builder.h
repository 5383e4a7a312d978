// SPDX-License-Identifier: Apache-2.0
// Makes a plan's steps from a graph: chooses kernels, packs weights, lays buffers out in one arena.
#pragma once
#include <memory>
#include <vector>

#include "core/isa.h"
#include "engine/arena.h"
#include "engine/graph.h"
#include "engine/step.h"

namespace ff::engine {

// Packed weights, on huge pages; addresses stay.
class Store {
 public:
  ~Store();
  Store() = default;
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;
  float* take(size_t floats);  // 64-byte aligned, zeros
  size_t bytes() const { return bytes_; }

 private:
  std::vector<void*> blocks_;
  char* next_ = nullptr;
  size_t left_ = 0, bytes_ = 0;
};

// value · scale + shift of each channel of the input image; empty: as it is.
struct Normalisation {
  std::vector<float> scale, shift;
};

struct Program {
  std::vector<Step> steps;
  Layout layout;
  size_t scratch = 0;  // floats
  Store weights;
  Normalisation floats, bytes;  // of images by type
  std::vector<Slot> values;     // of the graph; only where steps are apart
};

const Kernels& kernels_of(Isa isa);
const Glue& glue_of(Isa isa);

// A map between two convolutions that is larger than this does not stay in a core's cache: then they run as strips.
constexpr double kStripBytes = 768 * 1024;

// Throws std::invalid_argument when a value would be larger than the engine holds, or a type is not to be had.
struct BuildOptions {
  Isa isa;
  Type type = Type::float32;  // what dense convolutions compute in; bfloat16 and uint8 (int8) need `low_precision` kernels
  bool strict = false;        // no Winograd and no Strassen convolutions
  bool apart = false;         // each value is made by a step of its own
  double strip_bytes = kStripBytes;
};

std::unique_ptr<Program> build(const Graph& graph, const BuildOptions& options, const Normalisation& bytes);

class Builder {
 public:
  Builder(const Graph& graph, const BuildOptions& options, Program& program);
  void run();

 private:
  // A dense layer between vectors or lines, packed.
  struct Dense {
    const float *weights, *bias;
    int inputs, outputs, panel;
  };
  // Gates of the rows or columns of a map from their pools: scaled and added, then two dense layers.
  struct LineGate {
    Slot sum, most, pooled, hidden, gate;
    const float* scale;
    Dense first, last;
  };
  // An addition that the node which makes one of its inputs does: + other, then act.
  struct Sum {
    int other = -1, output = -1;
    Act act = Act::none;
  };

  // Convolutions (nodes, -1: none) that run as one step with the gates in front of them, when the last of them is due.
  struct Chain {
    int expand = -1, depthwise = -1, project = -1;
    bool any() const { return depthwise >= 0 || project >= 0; }
  };
  // How a dense convolution is computed: sum by sum, or with fewer products.
  enum class Method { direct, winograd, strassen };
  // Gates that a map is to be multiplied with by whoever reads it.
  struct GateSlots {
    Slot x = kNoSlot, channel = kNoSlot, line = kNoSlot, column = kNoSlot;
  };

  // builder.cpp: memory
  int blocks(int channels) const { return (channels + k_.lanes - 1) / k_.lanes; }
  size_t padded_size(idx count) const { return static_cast<size_t>((count + k_.lanes - 1) / k_.lanes * k_.lanes); }
  int new_buffer(size_t floats);
  Slot new_slot(const Shape& shape, int top = 0, int left = 0, int bottom = 0, int right = 0, Type type = Type::float32, Quant quant = {});
  Slot lines(int channels, int length);  // (C, 1, length): the layout of Pools
  Slot planes(const Shape& shape, int count, int kh, int kw);
  Slot value(int id);
  Slot read(int value, Type type);  // the value's map as this type, converted where it is another
  Slot input(const Node& node, size_t i = 0) { return read(node.inputs[i], Type::float32); }
  Slot output(const Node& node);    // of the node, or of the addition that it does
  Slot residual(Type type);  // what the node that is being lowered adds, as this type
  Act after() const { return sums_[static_cast<size_t>(node_)].act; }
  void find_borders();
  const float* padded(const float* v, idx count);
  Dense dense(const Weights& w, const Weights& bias, int inputs, int pixels);
  // Appends a step from x to y that may be split along both axes of y; `others` are slots that it reads or writes besides.
  Step& add(const char* name, const Slot& x, const Slot& y, const std::vector<Slot>& others, StepFn run);
  void touch(const Slot& slot, int step);

  // fuse.cpp: which nodes run as one step
  const Node& node_at(int i) const { return graph_.nodes[static_cast<size_t>(i)]; }
  void count_uses();
  void find_image();
  void find_sums();
  void find_chains();
  void find_means();
  bool adds(size_t producer, int value, int other) const;
  bool is_point(int node) const;
  bool halves(int node) const;
  int only_reader(int value) const;

  // types.cpp: which values are bfloat16 or bytes
  void find_types();
  bool is_low(int node) const;
  bool writes_low(int node) const;
  Type type_of(int value) const { return types_[static_cast<size_t>(value)]; }
  Quant quant_of(int value, Type type) const;

  // lower.cpp: an operation as steps
  void lower(const Node& node);
  void import(const Slot& y);
  void stem(const Node& node);
  void conv(const Node& node);
  Type reads(const Node& node) const;
  Conv describe(const Node& node, Method method);
  Method method(const Node& node, const Slot& x, const Slot& other) const;
  void chain(const Chain& chain, const GateSlots& gates);
  void window_pool(const Node& node);
  void global_pool(const Node& node);
  void mean_conv(const Node& node, const Node& conv);
  void line_pool(const Node& node);
  void binary(const Node& node);
  void affine(const Node& node);
  void concat(const Node& node);
  void channel_pool(const Node& node);

  // lower_gates.cpp: pools of x, by the step that makes it where that one can
  void pool(int value, const PoolSlots& wanted);
  Slot mlp_gate(const Node& node, const PoolSlots& pools, int count, float scale, Act act, Act gate);
  Slot mlp_gate(const Node& node, bool maxima, Act act, Act gate);
  Slot neighbour_gate(const Node& node);
  Slot gate_input(const Node& node);
  Slot gate_planes(const Slot& x, const Slot& channel, bool mean_first, int kh, int kw);
  void gated(const Node& node, const Slot& x, const Slot& channel, bool sum, bool pool, const PixelPools* pixel);
  void gated_by_planes(const Node& node, const Slot& x, const Slot& channel, const Slot& pair, const float* w, float bias, int kh, int kw);
  void cbam(const Node& node);
  void se(const Node& node);
  void eca(const Node& node);
  void scse(const Node& node);
  void sa(const Node& node);
  void csa(const Node& node);
  void coordinate(const Node& node);
  void multiply(const Node& node, const GateSlots& gates);
  LineGate line_gate(const Slot& sum, const Slot& most, int over, const Dense& first, const Dense& last);
  void dot_attention(const Node& node);
  void additive_attention(const Node& node);

  // lower_planes.cpp
  void find_planes();
  Slot bordered_planes(const Shape& shape, const Node* reader);
  Slot plane_conv(const Node& node, const Slot& x, const Node* reader);
  Slot plane_gates(const Node& node, const Slot& x);
  void planar();

  const Graph& graph_;
  Program& program_;
  const Kernels& k_;
  const Glue& glue_;
  const BuildOptions options_;
  std::vector<Slot> values_;      // buffer -1: not made yet
  std::vector<Slot> converted_;   // the same in the other type, where somebody reads it so
  std::vector<Type> types_;       // of the values
  std::vector<Shape> borders_[2];  // top and left, bottom and right that readers of a value need, as height and width
  std::vector<Buffer> buffers_;
  int node_ = -1;
  int image_ = -1;                // the value that is the normalised input image
  std::vector<bool> done_;        // nodes that others do
  std::vector<Sum> sums_;         // by node
  std::vector<int> planar_;       // nodes that run on planes, from the image on
  std::vector<Chain> chains_;     // by node that runs them
  std::vector<bool> deferred_;    // nodes that leave their gates to their reader
  std::vector<GateSlots> gates_;  // by value, of such nodes
  std::vector<int> uses_, producer_, reader_;  // by value: how often it is read, who makes it (-1), who reads it last (-1)
};

}  // namespace ff::engine
