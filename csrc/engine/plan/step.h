// SPDX-License-Identifier: Apache-2.0
// What a plan is made of: steps that each run one kernel, over buffers whose addresses differ between callers.
#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/glue.h"
#include "engine/tensors.h"

namespace ff::engine {

// A map in a buffer: its pixel (0, 0) lies `origin` floats after the buffer's start, in a border of zeros. `pixel`
// floats are a pixel of a block: the lanes of a vector, or 1 where each channel is a plane. Buffer -1: no map. Where
// elements are not float32, distances count them.
struct Slot {
  int buffer, pixel;
  ptrdiff_t origin;
  int channels, height, width;
  ptrdiff_t row, block;
  int top, left, bottom, right;
  Type type;
  Quant quant;
};

constexpr Slot kNoSlot{-1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, Type::float32, {}};

constexpr size_t size_of(Type type) { return type == Type::float32 ? 4 : type == Type::bfloat16 ? 2 : 1; }

// One image on its way through a plan.
struct Frame {
  float* const* buffers;
  float* scratch;  // of the thread that runs the step
  const void* image;
  Pixels type;
  float* const* outputs;

  float* buffer(const Slot& s) const { return s.buffer < 0 ? nullptr : buffers[s.buffer]; }
  Map map(const Slot& s) const {
    float* data = nullptr;
    if (s.buffer >= 0)
      data = reinterpret_cast<float*>(reinterpret_cast<char*>(buffers[s.buffer]) +
                                      s.origin * static_cast<ptrdiff_t>(size_of(s.type)));
    return {data, s.channels, s.height, s.width, s.row, s.block};
  }
};

// Pools that later steps want of a convolution's output; see Pools.
struct PoolSlots {
  Slot line_sum = kNoSlot, line_max = kNoSlot, column_sum = kNoSlot, column_max = kNoSlot;

  bool any() const {
    return line_sum.buffer >= 0 || line_max.buffer >= 0 || column_sum.buffer >= 0 || column_max.buffer >= 0;
  }
  Pools of(const Frame& f) const {
    return {f.buffer(line_sum), f.buffer(line_max), f.buffer(column_sum), f.buffer(column_max)};
  }
};

// Computes a part of y from x; everything else it captures.
using StepFn = std::function<void(const Frame&, const Map& x, const Map& y, Part part)>;

struct Step {
  std::string name;
  int node = -1;  // of the graph; -1: none
  Slot x = kNoSlot, y = kNoSlot;
  StepFn run;
  int height = 1, blocks = 1;               // of the output, which may be split
  int band = 1, panel = 1;                  // into groups of so many rows or blocks
  bool by_rows = false, by_blocks = false;  // neither: one thread runs it
  double seconds = 0;                       // expected on one thread
  bool solo = false;                        // one thread runs it though several work on the image
  bool clears_border = false;               // zeros around y are written after the kernel
  double macs = 0, bytes = 0;               // of one image; bytes of maps and weights read and written once
  double products = 0;                      // that are computed, where fewer than macs
  std::shared_ptr<PoolSlots> pools;         // of steps that can pool their output
};

}  // namespace ff::engine
