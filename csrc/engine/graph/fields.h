// SPDX-License-Identifier: Apache-2.0
// What the operations of a network are described with: their codes, shapes of maps, weights in a file, sliding windows.
#pragma once
#include "engine/functions.h"
#include "engine/kernel_table.h"

namespace ff::engine {

// Codes as in the file.
enum class Op : uint32_t {
  conv = 1,
  max_pool = 2,
  avg_pool = 3,
  global_pool = 4,
  add = 5,
  mul = 6,
  act = 7,
  affine = 8,
  concat = 9,
  channel_pool = 10,
  line_pool = 11,
  cbam = 20,
  se = 21,
  eca = 22,
  scse = 23,
  sa = 24,
  csa = 25,
  coordinate = 26,
  dot_attention = 27,
  additive_attention = 28,
  gather = 40,
  constant = 41,
  join = 42,
  unary = 43,
  binary = 44,
  select = 45,
  reduce = 46,
  softmax = 47,
  resample = 48,
  normalise = 49,
  matmul = 50,
  dilated_conv = 51,
  sample = 52,
};

// Maps are (C, H, W) of one image. Vectors are maps of one pixel, tokens are the pixels of a map.
struct Shape {
  int channels, height, width;
};

struct Weights {
  const float* data;  // into the file's bytes
  idx count;
};

namespace graph {

constexpr int kMany = -1;  // inputs: one or more
constexpr int kMostTaps = 1024;  // kernel, stride and padding along an axis
constexpr int kMostChannels = 1 << 24;

// fields(v) names an operation's attributes, v.number(name, field, least, most), and its weights, v.weights(name,
// field), both in the file's order.

// A window that slides over a map with padding on four sides.
struct Sliding {
  Window window;
  int bottom, right;

  template <class V>
  void fields(V& v, bool pool) {
    Window& w = window;
    v.number("kh", w.kh, 1, kMostTaps), v.number("kw", w.kw, 1, kMostTaps);
    v.number("sh", w.sh, 1, kMostTaps), v.number("sw", w.sw, 1, kMostTaps);
    // A pooling window lies at least in part on the image.
    const int most_y = pool ? w.kh - 1 : kMostTaps, most_x = pool ? w.kw - 1 : kMostTaps;
    v.number("top", w.top, 0, most_y), v.number("left", w.left, 0, most_x), v.number("bottom", bottom, 0, most_y),
        v.number("right", right, 0, most_x);
  }
};

}  // namespace graph
}  // namespace ff::engine
