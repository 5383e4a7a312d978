// SPDX-License-Identifier: Apache-2.0
// What stands between convolutions: pooling, arithmetic, gates, attention. Arguments are plain data as in
// kernel_table.h, and maps follow its rules. A call computes the part of its output that it is told; where no part is
// given, all of it.
#pragma once
#include "engine/kernel_table.h"

namespace ff {
namespace engine {

// NCHW pixels, value·scale[c] + shift[c] (both null: 1 and 0), as a map.
struct Import {
  const void* x;
  Pixels type;
  const float *scale, *shift;
  Map y;
};

// A map as NCHW floats.
struct Export {
  Map x;
  float* y;
};

// Maximum or mean of windows, + residual (data null: none); the part of a window outside the image counts for the mean
// only when `count_padding`, and then as zeros, within bottom and right padding.
struct WindowPool {
  Map x, y, residual;
  Window window;
  int bottom, right;
  bool mean, count_padding;
};

// Sums and maxima of the lines of x (see Pools).
struct LinePools {
  Map x;
  Pools pools;
};

// y's pixel (k, l): the mean of what tap (k, l) of a window reads, over a convolution's `height` × `width` outputs. x
// needs the border that the convolution would.
struct TapMeans {
  Map x, y;
  Window window;
  int height, width;
};

// Per channel scale · sum and / or the maximum over `lines` values [blocks][lines][L]: y is a map of one pixel for each
// that is not null, sums first; `both` adds the two instead.
struct Reduce {
  const float *sums, *maxima;
  int lines;
  float scale;
  bool both;
  Map y;
};

// y = act(a + b) or act(a · b); axes of b of length 1 are repeated.
struct Binary {
  Map a, b, y;
  bool product;
  Act act;
};

// y = act(x·scale + shift), [blocks·L] each (both null: 1 and 0).
struct Affine {
  Map x, y;
  const float *scale, *shift;
  Act act;
};

// Of each pixel of x · channel (null: 1) the maximum and the mean of the channels, each a plane; null: not wanted. With
// `taps` [blocks·L] the inner product with them takes the mean's place. `gate`: logistic(at_max · maximum + at_mean ·
// mean
// + bias), a plane too, or null.
struct PixelPools {
  Map x;
  const float *channel, *taps;
  float *max, *mean;  // pixel (0, 0)
  ptrdiff_t row;
  float* gate;
  ptrdiff_t gate_row;
  float at_max, at_mean, bias;
};

// logistic(bias + cross-correlation of the planes with w): `planes` pixel (0, 0) of the first of `count` planes in a
// border of zeros of half the kernel; y [height][y_row].
struct PixelGate {
  const float* planes;
  ptrdiff_t row, plane;
  int count, kh, kw, height, width;
  const float* weights;  // [count][kh][kw]
  float bias;
  float* y;
  ptrdiff_t y_row;
};

// y = x · (channel gate · or + pixel gate), then the 2×2 maximum when `pool`, then + residual (data null: none).
struct Gated {
  Map x, y, residual;
  const float* channel;  // [blocks·L] or null
  const float* pixel;    // [height][pixel_row] or null
  ptrdiff_t pixel_row;
  bool sum, pool;
};

// Gates of the channels from a convolution of their means over neighbouring channels (ECA): zeros beside them.
struct NeighbourGate {
  const float* means;    // [channels], zeros for taps / 2 before and taps / 2 + L after them
  const float* weights;  // [taps], odd
  int channels, taps;
  float* y;
};

// softmax(scale · q kᵀ) k for each token of q, or the mean of these; tokens are the pixels of a map, k is kv.
struct DotAttention {
  Map q, kv, y;
  float scale;
  bool mean;
  float* scratch;  // dot_scratch floats
};

// Weighted sum over tokens of x: softmax of v · tanh(hidden) + a constant; hidden is a map of E channels.
struct AdditiveAttention {
  Map x, hidden, y;
  const float* v;  // [blocks·L]
  float* scratch;  // pixels of x, rounded up to whole vectors
};

// One row a kernel: X(name, result, arguments). The table of each instruction set is made of these.
#define FF_GLUE(X)                                    \
  X(import, void, (const Import&, Part))              \
  X(export_map, void, (const Export&, Part))          \
  X(window_pool, void, (const WindowPool&, Part))     \
  X(line_pools, void, (const LinePools&, Part))       \
  X(tap_means, void, (const TapMeans&, Part))         \
  X(reduce, void, (const Reduce&))                    \
  X(binary, void, (const Binary&, Part))              \
  X(affine, void, (const Affine&, Part))              \
  X(pixel_pools, void, (const PixelPools&, Part))     \
  X(pixel_gate, void, (const PixelGate&, Part))       \
  X(gated, void, (const Gated&, Part))                \
  X(neighbour_gate, void, (const NeighbourGate&))     \
  X(dot_scratch, size_t, (int channels, int keys))    \
  X(dot_attention, void, (const DotAttention&, Part)) \
  X(additive_attention, void, (const AdditiveAttention&))

struct Glue {
#define FF_MEMBER(name, result, arguments) result(*name) arguments;
  FF_GLUE(FF_MEMBER)
#undef FF_MEMBER
};

}  // namespace engine

#define FF_ENGINE_GLUE(name)         \
  namespace name {                   \
  const engine::Glue& engine_glue(); \
  }
FF_EACH_ISA(FF_ENGINE_GLUE)
#undef FF_ENGINE_GLUE

}  // namespace ff
