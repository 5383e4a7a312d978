// SPDX-License-Identifier: Apache-2.0
// The shapes of an operation's inputs while its output's is inferred, and how to complain about them.
#pragma once
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/graph/ops.h"

namespace ff::engine::graph {

constexpr idx kMostLength = idx{1} << 28;

inline std::string text(const Shape& s) {
  return "(" + std::to_string(s.channels) + ", " + std::to_string(s.height) + ", " + std::to_string(s.width) + ")";
}

inline bool same(const Shape& a, const Shape& b) {
  return a.channels == b.channels && a.height == b.height && a.width == b.width;
}

// The inputs' shapes of one operation, and how to complain about it.
struct Inputs {
  const std::vector<Shape>& shapes;
  const std::string& where;

  const Shape& operator[](size_t i) const { return shapes[i]; }
  [[noreturn]] void fail(const std::string& what, const std::string& want, const std::string& got) const {
    throw std::invalid_argument(where + what + ": expected " + want + ", got " + got);
  }
  void count(const char* name, const Weights& w, idx want) const {
    if (w.count != want) fail(name, std::to_string(want) + " floats", std::to_string(w.count));
  }
  // The length of a weight that others must match.
  idx length(const char* name, const Weights& w) const {
    if (w.count < 1 || w.count > kMostLength) fail(name, "1 float or more", std::to_string(w.count));
    return w.count;
  }
  void odd(const char* name, const Weights& w) const {
    if (length(name, w) % 2 == 0 || w.count > kMostTaps) fail(name, "an odd number of floats", std::to_string(w.count));
  }
  // Odd sizes of a kernel, so that the result has the image's size; the taps of two planes.
  idx taps(int kh, int kw) const {
    if (kh % 2 == 0 || kw % 2 == 0) fail("kernel", "odd sizes", std::to_string(kh) + "x" + std::to_string(kw));
    return idx{2} * kh * kw;
  }
  void mlp(const Mlp& m) const {
    const idx c = shapes[0].channels, hidden = length("b1", m.b1);
    count("w1", m.w1, hidden * c), count("w2", m.w2, hidden * c), count("b2", m.b2, c);
  }
  void spatial(const Spatial& s, idx want) const { count("spatial", s.weight, want), count("spatial_bias", s.bias, 1); }
  Shape slide(const Sliding& s, int channels) const {
    const Shape& x = shapes[0];
    const Window& w = s.window;
    const idx h = idx{x.height} + w.top + s.bottom - span_height(w),
              v = idx{x.width} + w.left + s.right - span_width(w);
    if (h < 0 || v < 0)
      fail("kernel", "at most the padded image", std::to_string(w.kh) + "x" + std::to_string(w.kw) + " on " + text(x));
    return {channels, static_cast<int>(h / w.sh + 1), static_cast<int>(v / w.sw + 1)};
  }
  Shape repeated() const {
    const Shape &a = shapes[0], &b = shapes[1];
    const auto fits = [](int one, int other) { return other == one || other == 1; };
    if (!fits(a.channels, b.channels) || !fits(a.height, b.height) || !fits(a.width, b.width))
      fail("second input", "the first one's axes " + text(a) + " or 1", text(b));
    return a;
  }
};

}  // namespace ff::engine::graph
