// SPDX-License-Identifier: Apache-2.0
// The operations of a network, each a struct with named fields. What a struct says here is read by the file's reader,
// by the binding (which tells Python codes, names and shapes) and by the plan.
//
// Adding an operation touches these places:
//   1. graph/fields.h: its code; graph/ops.h or tensor_ops.h: its struct; graph/ops.h: its place in FileOps
//   2. graph/shapes.cpp or tensor_shapes.h: shape_of, which checks its parts
//   3. plan/lower_*.cpp: lower(), its steps; declared in plan/lower.h
//   4. glue.h or tensors.h: the arguments of a new kernel and its row in FF_GLUE or FF_TENSORS; kernels/: the kernel
//   (none, if the steps use what is there)
//   5. fastfer/engine/graph.py: its row in OPS, compared with this table by tests/test_engine_ops.py
//   6. fastfer/engine/convert_*.py: what of torch becomes it
#pragma once
#include <optional>
#include <variant>
#include <vector>

#include "engine/graph/tensor_ops.h"

namespace ff::engine {

namespace graph {

// act(convolution + bias); weight (O, C / groups, kh, kw), bias (O); one channel of input and output a group:
// depthwise.
struct Conv {
  static constexpr Op kOp = Op::conv;
  static constexpr const char* kName = "conv";
  static constexpr int kInputs = 1;
  Sliding sliding;
  int groups;
  Act act;
  Weights weight, bias;
  template <class V>
  void fields(V& v) {
    sliding.fields(v, false), v.number("groups", groups, 1, kMostChannels), v.act("act", act),
        v.weights("weight", weight), v.weights("bias", bias);
  }
  bool depthwise() const {
    return groups > 1 && groups == bias.count && weight.count == bias.count * sliding.window.kh * sliding.window.kw;
  }
  bool grouped() const { return groups > 1 && !depthwise(); }
  bool dilated() const { return sliding.window.dh > 1 || sliding.window.dw > 1; }
};

// The same with dh and dw pixels from tap to tap; a graph has it as Conv.
struct DilatedConv {
  static constexpr Op kOp = Op::dilated_conv;
  static constexpr const char* kName = "dilated_conv";
  static constexpr int kInputs = 1;
  Conv conv;
  template <class V>
  void fields(V& v) {
    conv.fields(v);
    v.number("dh", conv.sliding.window.dh, 1, kMostTaps), v.number("dw", conv.sliding.window.dw, 1, kMostTaps);
  }
};

struct MaxPool {
  static constexpr Op kOp = Op::max_pool;
  static constexpr const char* kName = "max_pool";
  static constexpr int kInputs = 1;
  Sliding sliding;
  template <class V>
  void fields(V& v) {
    sliding.fields(v, true);
  }
};

struct AvgPool {
  static constexpr Op kOp = Op::avg_pool;
  static constexpr const char* kName = "avg_pool";
  static constexpr int kInputs = 1;
  Sliding sliding;
  bool count_padding;
  template <class V>
  void fields(V& v) {
    sliding.fields(v, true), v.flag("count_padding", count_padding);
  }
};

// The mean or the maximum of each channel: (C, 1, 1).
struct GlobalPool {
  static constexpr Op kOp = Op::global_pool;
  static constexpr const char* kName = "global_pool";
  static constexpr int kInputs = 1;
  bool maximum;
  template <class V>
  void fields(V& v) {
    v.flag("kind", maximum);
  }
};

// act(a + b) or act(a · b); each axis of b is a's or 1.
struct Add {
  static constexpr Op kOp = Op::add;
  static constexpr const char* kName = "add";
  static constexpr int kInputs = 2;
  Act act;
  template <class V>
  void fields(V& v) {
    v.act("act", act);
  }
};
struct Mul {
  static constexpr Op kOp = Op::mul;
  static constexpr const char* kName = "mul";
  static constexpr int kInputs = 2;
  Act act;
  template <class V>
  void fields(V& v) {
    v.act("act", act);
  }
};

struct Activate {
  static constexpr Op kOp = Op::act;
  static constexpr const char* kName = "act";
  static constexpr int kInputs = 1;
  Act act;
  template <class V>
  void fields(V& v) {
    v.act("act", act);
  }
};

// act(x · scale + shift), one of each a channel.
struct Affine {
  static constexpr Op kOp = Op::affine;
  static constexpr const char* kName = "affine";
  static constexpr int kInputs = 1;
  Act act;
  Weights scale, shift;
  template <class V>
  void fields(V& v) {
    v.act("act", act), v.weights("scale", scale), v.weights("shift", shift);
  }
};

// Along the channels.
struct Concat {
  static constexpr Op kOp = Op::concat;
  static constexpr const char* kName = "concat";
  static constexpr int kInputs = kMany;
  template <class V>
  void fields(V&) {}
};

// Over the channels of each pixel, 0 [max; mean], 1 [mean; max], 2 mean, 3 max: (2 or 1, H, W).
struct ChannelPool {
  static constexpr Op kOp = Op::channel_pool;
  static constexpr const char* kName = "channel_pool";
  static constexpr int kInputs = 1;
  int order;
  template <class V>
  void fields(V& v) {
    v.number("order", order, 0, 3);
  }
};

// The means or maxima of the rows, (C, H, 1), or of the columns, (C, 1, W).
struct LinePool {
  static constexpr Op kOp = Op::line_pool;
  static constexpr const char* kName = "line_pool";
  static constexpr int kInputs = 1;
  bool columns, maximum;
  template <class V>
  void fields(V& v) {
    v.flag("axis", columns), v.flag("kind", maximum);
  }
};

// Two dense layers of a vector: w1 (M, C), b1 (M), w2 (C, M), b2 (C).
struct Mlp {
  Weights w1, b1, w2, b2;
  template <class V>
  void fields(V& v) {
    v.weights("w1", w1), v.weights("b1", b1), v.weights("w2", w2), v.weights("b2", b2);
  }
};

// A convolution of pools over the channels, or a sum over these: (2, kh, kw) or (C) or (2), bias (1).
struct Spatial {
  Weights weight, bias;
  template <class V>
  void fields(V& v) {
    v.weights("spatial", weight), v.weights("spatial_bias", bias);
  }
};

// spatial (1, 2, kh, kw) of [max; mean].
struct Cbam {
  static constexpr Op kOp = Op::cbam;
  static constexpr const char* kName = "cbam";
  static constexpr int kInputs = 1;
  int kh, kw;
  Mlp mlp;
  Spatial spatial;
  template <class V>
  void fields(V& v) {
    v.number("kh", kh, 1, 63), v.number("kw", kw, 1, 63), mlp.fields(v), spatial.fields(v);
  }
};

struct Se {
  static constexpr Op kOp = Op::se;
  static constexpr const char* kName = "se";
  static constexpr int kInputs = 1;
  Act act, gate_act;
  Mlp mlp;
  bool by_reader = false;  // a rewrite's: the one who reads the product makes it from input and gates
  template <class V>
  void fields(V& v) {
    v.act("act", act), v.act("gate_act", gate_act), mlp.fields(v);
  }
};

// weight (k) over neighbouring channels.
struct Eca {
  static constexpr Op kOp = Op::eca;
  static constexpr const char* kName = "eca";
  static constexpr int kInputs = 1;
  Weights weight;
  bool by_reader = false;
  template <class V>
  void fields(V& v) {
    v.weights("weight", weight);
  }
};

// spatial (C).
struct Scse {
  static constexpr Op kOp = Op::scse;
  static constexpr const char* kName = "scse";
  static constexpr int kInputs = 1;
  Act act;
  Mlp mlp;
  Spatial spatial;
  template <class V>
  void fields(V& v) {
    v.act("act", act), mlp.fields(v), spatial.fields(v);
  }
};

// spatial (2, kh, kw) of [max; mean], or [mean; max].
struct Sa {
  static constexpr Op kOp = Op::sa;
  static constexpr const char* kName = "sa";
  static constexpr int kInputs = 1;
  bool mean_first;
  int kh, kw;
  Spatial spatial;
  template <class V>
  void fields(V& v) {
    v.flag("order", mean_first), v.number("kh", kh, 1, 63), v.number("kw", kw, 1, 63), spatial.fields(v);
  }
};

// weight (k) over neighbouring channels, spatial (2) of [max; mean]; then the 2×2 maximum, or not.
struct Csa {
  static constexpr Op kOp = Op::csa;
  static constexpr const char* kName = "csa";
  static constexpr int kInputs = 1;
  bool pool;
  Weights weight;
  Spatial spatial;
  template <class V>
  void fields(V& v) {
    v.flag("pool", pool), v.weights("weight", weight), spatial.fields(v);
  }
};

// Gates of rows and columns from their means (mode 0), maxima (1) or the sum of both (2): weight (M, C), bias (M), rows
// (C, M), rows_bias (C), columns (C, M), columns_bias (C).
struct Coordinate {
  static constexpr Op kOp = Op::coordinate;
  static constexpr const char* kName = "coordinate";
  static constexpr int kInputs = 1;
  int mode;
  Weights weight, bias, rows, rows_bias, columns, columns_bias;
  bool by_reader = false;
  template <class V>
  void fields(V& v) {
    v.number("mode", mode, 0, 2), v.weights("weight", weight), v.weights("bias", bias);
    v.weights("rows", rows), v.weights("rows_bias", rows_bias), v.weights("columns", columns),
        v.weights("columns_bias", columns_bias);
  }
};

// q, kv: softmax(scale · q kᵀ) k, of q's shape; or the mean over the queries, (D, 1, 1).
struct DotAttention {
  static constexpr Op kOp = Op::dot_attention;
  static constexpr const char* kName = "dot_attention";
  static constexpr int kInputs = 2;
  bool mean;
  Weights scale;
  template <class V>
  void fields(V& v) {
    v.flag("mean", mean), v.weights("scale", scale);
  }
};

// h, x: the sum of tokens of x weighted by softmax(score · tanh(weight · [x; h] + bias) + score_bias): (D, 1, 1);
// weight (E, 2D), bias (E), score (E), score_bias (1).
struct AdditiveAttention {
  static constexpr Op kOp = Op::additive_attention;
  static constexpr const char* kName = "additive_attention";
  static constexpr int kInputs = 2;
  Weights weight, bias, score, score_bias;
  template <class V>
  void fields(V& v) {
    v.weights("weight", weight), v.weights("bias", bias), v.weights("score", score),
        v.weights("score_bias", score_bias);
  }
};

// What rewrites make of several operations. A stage is one of these, with the values between which it stood and its
// number.
template <class T>
struct Stage {
  T op;
  int input, output, origin;
};

// Convolutions one after another by strips of rows: 1×1, depthwise, 1×1; each may be missing, but not depthwise and
// project both. Gates whose product nobody else reads may stand in front of them.
struct Strips {
  std::optional<Stage<Conv>> expand, depthwise, project;
};

// Convolutions from the image on, of few channels, and a CBAM after them.
struct Planar {
  std::vector<Stage<Conv>> convs;
  std::optional<Stage<Cbam>> cbam;
};

// The mean over the image of a convolution's outputs.
struct MeanConv {
  Stage<Conv> conv;
};

// Channels of maps of one height and width: each is channel `channel` of input number `input`.
struct Channels {
  static constexpr int kMostInputs = 16;
  struct Source {
    int input, channel;
  };
  std::vector<Source> from;
};

template <class... Ops>
struct OpList {
  using Any = std::variant<Ops..., Strips, Planar, MeanConv, Channels>;
  // Calls body(Ops*) for each.
  template <class Body>
  static void each(const Body& body) {
    (body(static_cast<Ops*>(nullptr)), ...);
  }
};
using FileOps = OpList<Conv, MaxPool, AvgPool, GlobalPool, Add, Mul, Activate, Affine, Concat, ChannelPool, LinePool,
                       Cbam, Se, Eca, Scse, Sa, Csa, Coordinate, DotAttention, AdditiveAttention, Gather, Constant,
                       Join, Unary, Binary, Select, Reduce, Softmax, Resample, Normalise, MatMul, DilatedConv, Sample>;
using AnyOp = FileOps::Any;

}  // namespace graph
}  // namespace ff::engine
