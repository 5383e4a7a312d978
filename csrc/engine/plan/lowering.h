// SPDX-License-Identifier: Apache-2.0
// From the nodes of a graph to steps: what the lower_*.cpp, one for each kind of operation, have in common. Maps have
// slots in buffers, weights are packed, steps are appended.
#pragma once
#include <memory>
#include <vector>

#include "engine/plan/program.h"

namespace ff::engine {

// A dense layer between vectors or lines, packed.
struct Dense {
  const float *weights, *bias;
  int inputs, outputs, panel;
};

// Gates that a map is to be multiplied with by whoever reads the product.
struct GateSlots {
  Slot x = kNoSlot, channel = kNoSlot, line = kNoSlot, column = kNoSlot;
};

class Lowering {
 public:
  // image_steps: the first convolution may read the image itself.
  Lowering(const Graph& graph, std::vector<Type> types, const Target& target, const Glue& glue,
           const tensors::Table& tensors, bool image_steps, Program& program);

  void begin(const Node& node) { origin_ = node.origin, making_ = node.output; }
  void begin(int origin) { origin_ = origin; }
  // The outputs, and the layout.
  void finish();

  const Target& target() const { return target_; }
  const Kernels& kernels() const { return target_.kernels; }
  const Glue& glue() const { return glue_; }
  const tensors::Table& tensors() const { return tensors_; }
  const Program& program() const { return program_; }
  const Shape& shape(int value) const { return graph_.shape(value); }
  int blocks(int channels) const { return (channels + kernels().lanes - 1) / kernels().lanes; }

  // Values. `value` is a map as its maker writes it: only for steps that read every type. What others read is
  // converted.
  int input() const { return graph_.input; }
  bool reads_image(int value) const { return value == graph_.input; }
  Type taken_as(int value) const { return engine::taken_as(graph_, value, target_); }
  // What the convolution of this number in the file adds to its biases where it computes with bytes.
  const std::vector<float>* correction(int origin) const {
    return graph_.corrections.empty() ? nullptr : &graph_.corrections[static_cast<size_t>(origin)];
  }
  // Whether a convolution of the image is to read it as it came.
  bool takes_image(int value) const {
    return image_steps_ && reads_image(value) && values_[static_cast<size_t>(value)].buffer < 0;
  }
  Slot value(int id);
  // Whether a value is a part of the map that its node reads: then the node has nothing to do.
  bool is_part(int id) const { return homes_[static_cast<size_t>(id)].is_part; }
  Slot read(int id, Type type = Type::float32);
  Slot input(const Node& node, size_t i = 0) { return read(node.inputs[i]); }
  Slot output(const Node& node) { return value(node.output); }
  Slot residual(const Node& node, Type type = Type::float32) {
    return node.residual < 0 ? kNoSlot : read(node.residual, type);
  }
  Type type_of(int value) const { return types_[static_cast<size_t>(value)]; }
  Quant quant_of(int value, Type type) const;
  GateSlots& gates(int value) { return gates_[static_cast<size_t>(value)]; }
  const std::vector<Slot>& values() const { return values_; }

  // Memory between steps.
  Slot new_map(const Shape& shape, const Shape& before = {}, const Shape& after = {}, Type type = Type::float32,
               Quant quant = {});
  Slot lines(int channels, int length);  // (C, 1, length): the layout of Pools
  Slot planes(const Shape& shape, int count, int kh, int kw);  // with a border of half a kernel
  int new_buffer(size_t floats);
  void want_scratch(size_t floats);

  // Weights.
  float* packed(size_t floats) { return program_.weights.take(floats); }
  size_t padded_size(idx count) const {
    return static_cast<size_t>((count + kernels().lanes - 1) / kernels().lanes * kernels().lanes);
  }
  const float* padded(const Weights& w);
  Dense dense(const Weights& w, const Weights& bias, int inputs, int pixels);

  // Appends a step from x to y that may be split along both axes of y; `others` are slots that it reads or writes
  // besides.
  Step& add(const char* name, const Slot& x, const Slot& y, const std::vector<Slot>& others, StepFn run);
  // Pools of a value: by the step that makes it, where that one can and makes no others; else by a step of their own.
  void pool(int id, const PoolSlots& wanted);

 private:
  // Where a value lies whose channels are blocks of another value, from `block` on; -1: in a map of its own.
  struct Home {
    int value = -1, block = 0;
    bool is_part = false;
  };

  void take_homes();
  void import(const Slot& y);
  void touch(const Slot& slot, int step);

  const Graph& graph_;
  const std::vector<Type> types_;  // of the values
  const Target& target_;
  const Glue& glue_;
  const tensors::Table& tensors_;
  const bool image_steps_;
  Program& program_;
  int origin_ = -1;
  size_t scratch_ = 0;
  std::vector<Slot> values_;      // buffer -1: not made yet
  std::vector<Slot> converted_;   // the same in the other type, where somebody reads it so
  std::vector<Shape> before_, after_;  // borders that readers of a value need, as height and width
  std::vector<GateSlots> gates_;  // by value, of products that are left to their readers
  std::vector<Buffer> buffers_;
  std::vector<int> makers_;       // by value: the last step that writes it
  std::vector<Home> homes_;       // by value
  int making_ = -1;               // the value of the node at hand
};

}  // namespace ff::engine
