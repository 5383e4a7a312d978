// SPDX-License-Identifier: Apache-2.0
// Makes a plan's steps from a graph: chooses kernels, packs weights, lays buffers out in one arena.
#pragma once
#include <memory>
#include <vector>

#include "core/isa.h"
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
  std::vector<size_t> offsets;  // of the buffers in the arena, in floats
  size_t arena = 0, scratch = 0;  // floats
  Store weights;
  Normalisation floats, bytes;  // of images by type
};

const Kernels& kernels_of(Isa isa);
const Glue& glue_of(Isa isa);

// Throws std::invalid_argument when a value would be larger than the engine holds.
std::unique_ptr<Program> build(const Graph& graph, Isa isa, const Normalisation& bytes);

class Builder {
 public:
  Builder(const Graph& graph, Isa isa, Program& program);
  void run();

 private:
  // A dense layer between vectors or lines, packed.
  struct Dense {
    const float *weights, *bias;
    int inputs, outputs, panel;
  };
  struct Buffer {
    size_t floats;
    int first, last;  // steps that touch it
  };

  // builder.cpp: memory
  int blocks(int channels) const { return (channels + k_.lanes - 1) / k_.lanes; }
  int new_buffer(size_t floats);
  Slot new_slot(const Shape& shape, int top = 0, int left = 0, int bottom = 0, int right = 0);
  Slot lines(int channels, int length);  // (C, 1, length): the layout of Pools
  Slot& value(int id);
  void find_borders();
  void lay_out();
  const float* padded(const float* v, idx count);
  Dense dense(const Weights& w, const Weights& bias, int inputs, int pixels);
  // Appends a step; `touched` are the slots' buffers that it reads or writes.
  Step& add(const char* name, const std::vector<Slot>& reads, const Slot& output, std::function<void(const Frame&, Part)> run);
  void touch(int buffer);

  // lower.cpp: an operation as steps
  void lower(const Node& node);
  void find_image();
  void import(const Slot& y);
  void conv(const Node& node);
  bool stem(const Node& node);
  void window_pool(const Node& node);
  void global_pool(const Node& node);
  void line_pool(const Node& node);
  void binary(const Node& node);
  void affine(const Node& node);
  void concat(const Node& node);
  void channel_pool(const Node& node);

  // lower_gates.cpp
  Slot line_sums(const Slot& x, bool maxima, Slot* most);
  Slot mlp_gate(const Node& node, const Slot& x, bool maxima, Act act, Act gate);
  Slot neighbour_gate(const Slot& x, const Weights& w);
  Slot planes(const Shape& shape, int count, int kh, int kw);
  Slot pixel_gate(const Slot& x, const Slot* channel, const Weights& w, const Weights& bias, int kh, int kw, bool mean_first);
  void gated(const Slot& x, const Slot* channel, const Slot* pixel, bool sum, bool pool, const Slot& y);
  void cbam(const Node& node);
  void se(const Node& node);
  void eca(const Node& node);
  void scse(const Node& node);
  void sa(const Node& node);
  void csa(const Node& node);
  void coordinate(const Node& node);
  void dot_attention(const Node& node);
  void additive_attention(const Node& node);

  const Graph& graph_;
  Program& program_;
  const Kernels& k_;
  const Glue& glue_;
  std::vector<Slot> values_;      // buffer -1: not made yet
  std::vector<Shape> borders_[2];  // top and left, bottom and right that readers of a value need, as height and width
  std::vector<Buffer> buffers_;
  int node_ = -1;
  int image_ = -1, folded_ = -1;  // the value that the normalised input image is; the node that this leaves out
};

}  // namespace ff::engine
