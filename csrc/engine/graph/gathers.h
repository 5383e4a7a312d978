// SPDX-License-Identifier: Apache-2.0
// What a gather takes, element by element, and whether that is by whole pixels.
#pragma once
#include <vector>

#include "engine/graph/graph.h"

namespace ff::engine {

// The i-th of weights that are whole numbers of -1 to `most`; std::invalid_argument, naming `op`, if it is none.
int whole_number(const char* op, const Weights& w, idx i, idx most);

// For each element of a gather's output, in (C, H, W) order, the number of x's element; -1: none.
std::vector<int> sources(const graph::Gather& op, const Shape& x, const Shape& y);

// A gather that takes whole pixels, and of each the same channels.
struct ByPixels {
  std::vector<int> channels, rows, columns;

  // Whether it is one.
  bool fits(const std::vector<int>& from, const Shape& x, const Shape& y);

  template <class Body>
  static bool each(const std::vector<int>& from, const Shape& y, const Body& body) {
    size_t i = 0;
    for (int c = 0; c < y.channels; ++c)
      for (int row = 0; row < y.height; ++row)
        for (int column = 0; column < y.width; ++column)
          if (!body(c, row, column, from[i++])) return false;
    return true;
  }
};

}  // namespace ff::engine
