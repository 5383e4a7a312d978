// SPDX-License-Identifier: Apache-2.0
// The arguments of the kernels of graph/tensor_ops.h, as glue.h has those of the operations between convolutions.
#pragma once
#include "engine/functions.h"
#include "engine/kernel_table.h"

namespace ff {
namespace engine {
namespace tensors {

// y's pixel (i, j) from x's pixel (rows[i], columns[j]), where either is negative `fill`. Block b of it is the vector
// whole[b] floats after the pixel of block 0, or where that is negative, lane l what stands at channels[b·L + l],
// `fill` where that is negative.
struct GatherPixels {
  Map x, y;
  const int *rows, *columns;
  const int *whole, *channels;
  float fill;
};

// Channels of several maps of y's height and width, of which y may be one: block b of y takes parts first[b] to
// first[b + 1] - 1, each from a block of an input the lanes that it names, and nothing where it says -1; lanes of no
// part become 0, and a block of no parts stays as it is.
struct Channels {
  const Map* x;
  Map y;
  const int *first, *input, *block, *lanes;
};

// y's lane from x.data[from], or `fill` where that is negative; from [blocks][height][width][L] of y.
struct GatherAny {
  Map x, y;
  const int* from;
  float fill;
};

// The pixels of x as those of y from (top, left) on; rows of the part are y's.
struct Put {
  Map x, y;
  int top, left;
};

// a and b: [blocks·L].
struct Unary {
  Map x, y;
  UnaryOp function;
  const float *a, *b;
};

// Axes of length 1 are repeated.
struct Binary {
  Map a, b, y;
  BinaryOp function;
};
struct Select {
  Map condition, a, b, y;
};

struct Reduce {
  Map x, y;
  ReduceOp function;
  bool over_channels, over_height, over_width;
  float correction;
};

struct Softmax {
  Map x, y;
  bool log, over_channels, over_height, over_width;
};

struct Resample {
  Map x, y;
  bool maximum;
  int row_taps, column_taps;
  const int *rows, *columns;
  const float *rows_weight, *columns_weight;
};

// Of each channel what normalises it: [blocks·L] factors, then as many summands.
struct GroupStats {
  Map x;
  int groups;
  float eps;
  const float *scale, *shift;  // [blocks·L]
  float* to;
};

// Each pixel by the statistics of its channels.
struct PixelNorm {
  Map x, y;
  float eps;
  const float *scale, *shift;  // [blocks·L]
};

// See graph::MatMul.
struct MatMul {
  Map a, b, y;
};

// See graph::Sample.
struct Sample {
  Map x, grid, y;
  Sampling sampling;
  Outside outside;
  bool corners;
};

// As FF_GLUE.
#define FF_TENSORS(X)                                 \
  X(gather_pixels, void, (const GatherPixels&, Part)) \
  X(gather_any, void, (const GatherAny&, Part))       \
  X(take_channels, void, (const Channels&, Part))     \
  X(put, void, (const Put&, Part))                    \
  X(unary, void, (const Unary&, Part))                \
  X(binary_of, void, (const Binary&, Part))           \
  X(select_of, void, (const Select&, Part))           \
  X(reduce_axes, void, (const Reduce&, Part))         \
  X(softmax_axes, void, (const Softmax&, Part))       \
  X(resample, void, (const Resample&, Part))          \
  X(group_stats, void, (const GroupStats&))           \
  X(pixel_norm, void, (const PixelNorm&, Part))       \
  X(matmul, void, (const MatMul&, Part))              \
  X(sample, void, (const Sample&, Part))

struct Table {
#define FF_MEMBER(name, result, arguments) result(*name) arguments;
  FF_TENSORS(FF_MEMBER)
#undef FF_MEMBER
};
}  // namespace tensors

}  // namespace engine

#define FF_ENGINE_TENSORS(name)                   \
  namespace name {                                \
  const engine::tensors::Table& engine_tensors(); \
  }
FF_EACH_ISA(FF_ENGINE_TENSORS)
#undef FF_ENGINE_TENSORS

}  // namespace ff
