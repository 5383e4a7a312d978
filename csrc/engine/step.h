// SPDX-License-Identifier: Apache-2.0
// What a plan is made of: steps that each run one kernel, over buffers whose addresses differ between callers.
#pragma once
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "engine/glue.h"

namespace ff::engine {

// A map in a buffer: its pixel (0, 0) lies `origin` floats behind the buffer's start, in a border of zeros. `pixel` floats
// are a pixel of a block: the lanes of a vector, or 1 where each channel is a plane.
struct Slot {
  int buffer, pixel;
  ptrdiff_t origin;
  int channels, height, width;
  ptrdiff_t row, block;
  int top, left, bottom, right;
};

// One image on its way through a plan.
struct Frame {
  float* const* buffers;
  float* scratch;  // of the thread that runs the step
  const void* image;
  Pixels type;
  float* const* outputs;

  Map map(const Slot& s) const { return {buffers[s.buffer] + s.origin, s.channels, s.height, s.width, s.row, s.block}; }
};

struct Step {
  std::string name;
  int node = -1;                            // of the graph; -1: none
  int height = 1, blocks = 1, panel = 1;    // of the output: rows, and blocks in groups of `panel`, may be split
  bool by_rows = false, by_blocks = false;  // neither: one thread runs it
  double macs = 0, bytes = 0;               // of one image; bytes of maps and weights read and written once
  std::vector<Slot> bordered;               // outputs whose border is to be cleared behind the kernel
  std::function<void(const Frame&, Part)> run;
};

}  // namespace ff::engine
