// SPDX-License-Identifier: Apache-2.0
#include "engine/graph.h"

#include <stdexcept>
#include <string>

namespace ff::engine {
namespace {

constexpr int kMostTaps = 1024;           // kernel, stride and padding along an axis
constexpr idx kMostElements = idx{1} << 28;  // of a value, channels rounded up to 16
constexpr int kMostAct = static_cast<int>(Act::sigmoid);

struct Signature {
  Op op;
  const char* name;
  int inputs, attrs, weights;  // inputs -1: one or more
};

constexpr Signature kSignatures[] = {
    {Op::conv, "conv", 1, 10, 2},
    {Op::max_pool, "max_pool", 1, 8, 0},
    {Op::avg_pool, "avg_pool", 1, 9, 0},
    {Op::global_pool, "global_pool", 1, 1, 0},
    {Op::add, "add", 2, 1, 0},
    {Op::mul, "mul", 2, 1, 0},
    {Op::act, "act", 1, 1, 0},
    {Op::affine, "affine", 1, 1, 2},
    {Op::concat, "concat", -1, 0, 0},
    {Op::channel_pool, "channel_pool", 1, 1, 0},
    {Op::line_pool, "line_pool", 1, 2, 0},
    {Op::cbam, "cbam", 1, 2, 6},
    {Op::se, "se", 1, 2, 4},
    {Op::eca, "eca", 1, 0, 1},
    {Op::scse, "scse", 1, 1, 6},
    {Op::sa, "sa", 1, 3, 2},
    {Op::csa, "csa", 1, 1, 3},
    {Op::coordinate, "coordinate", 1, 1, 6},
    {Op::dot_attention, "dot_attention", 2, 1, 1},
    {Op::additive_attention, "additive_attention", 2, 0, 4},
};

const Signature* signature(Op op) {
  for (const Signature& s : kSignatures)
    if (s.op == op) return &s;
  return nullptr;
}

std::string text(const Shape& s) {
  return "(" + std::to_string(s.channels) + ", " + std::to_string(s.height) + ", " + std::to_string(s.width) + ")";
}

// One node with its place in the graph, for messages.
class Checker {
 public:
  Checker(const Graph& graph, size_t index) : graph_(graph), node_(graph.nodes[index]), index_(index) {}

  void run() const {
    const Signature* s = signature(node_.op);
    if (!s) fail("op", "a known code", std::to_string(static_cast<uint32_t>(node_.op)));
    const auto counted = [&](const char* what, int want, size_t got) {
      if (want < 0 ? got < 1 : got != static_cast<size_t>(want)) fail(what, want < 0 ? "1 or more" : std::to_string(want), std::to_string(got));
    };
    counted("number of inputs", s->inputs, node_.inputs.size());
    counted("number of attributes", s->attrs, node_.attrs.size());
    counted("number of weights", s->weights, node_.weights.size());
    const Shape want = output(), got = graph_.values[static_cast<size_t>(node_.output)];
    if (want.channels != got.channels || want.height != got.height || want.width != got.width) fail("output", text(want), text(got));
  }

 private:
  [[noreturn]] void fail(const std::string& what, const std::string& want, const std::string& got) const {
    const Signature* s = signature(node_.op);
    throw std::invalid_argument("engine file: node " + std::to_string(index_) + (s ? std::string(" (") + s->name + ")" : "") + ": " +
                                what + ": expected " + want + ", got " + got);
  }
  const Shape& in(size_t i = 0) const { return graph_.values[static_cast<size_t>(node_.inputs[i])]; }
  int attr(size_t i, const char* what, int least, int most) const {
    const int v = node_.attrs[i];
    if (v < least || v > most) fail(what, std::to_string(least) + " to " + std::to_string(most), std::to_string(v));
    return v;
  }
  void weight(size_t i, idx count) const {
    if (node_.weights[i].count != count) fail("weight " + std::to_string(i), std::to_string(count) + " floats", std::to_string(node_.weights[i].count));
  }
  // The length of a weight that another one or a node's attribute must match.
  idx length(size_t i) const {
    const idx n = node_.weights[i].count;
    if (n < 1 || n > kMostElements) fail("weight " + std::to_string(i), "1 float or more", std::to_string(n));
    return n;
  }
  void same(const char* what, const Shape& a, const Shape& b) const {
    if (a.channels != b.channels || a.height != b.height || a.width != b.width) fail(what, text(a), text(b));
  }

  Shape window(int channels, bool pool) const {
    const Shape& x = in();
    const int kh = attr(0, "kernel height", 1, kMostTaps), kw = attr(1, "kernel width", 1, kMostTaps);
    const int sh = attr(2, "vertical stride", 1, kMostTaps), sw = attr(3, "horizontal stride", 1, kMostTaps);
    // A pooling window lies at least in part on the image.
    const int most_h = pool ? kh - 1 : kMostTaps, most_w = pool ? kw - 1 : kMostTaps;
    const int top = attr(4, "top padding", 0, most_h), left = attr(5, "left padding", 0, most_w);
    const int bottom = attr(6, "bottom padding", 0, most_h), right = attr(7, "right padding", 0, most_w);
    const int h = x.height + top + bottom - kh, w = x.width + left + right - kw;
    if (h < 0 || w < 0) fail("kernel", "at most the padded image", std::to_string(kh) + "x" + std::to_string(kw) + " on " + text(x));
    return {channels, h / sh + 1, w / sw + 1};
  }

  Shape conv() const {
    const Shape& x = in();
    attr(9, "act", 0, kMostAct);
    const idx outputs = length(1);
    const int groups = node_.attrs[8];
    if (groups != 1 && (groups != x.channels || outputs != groups))
      fail("groups", "1, or the channels of input and output",
           std::to_string(groups) + " for " + std::to_string(x.channels) + " and " + std::to_string(outputs));
    const Shape y = window(static_cast<int>(outputs), false);
    weight(0, outputs * (groups == 1 ? x.channels : 1) * node_.attrs[0] * node_.attrs[1]);
    return y;
  }

  Shape binary() const {
    attr(0, "act", 0, kMostAct);
    const Shape &a = in(0), &b = in(1);
    const auto fits = [](int one, int other) { return other == one || other == 1; };
    if (!fits(a.channels, b.channels) || !fits(a.height, b.height) || !fits(a.width, b.width))
      fail("second input", "the first one's axes " + text(a) + " or 1", text(b));
    return a;
  }

  Shape concat() const {
    Shape y = in();
    idx channels = 0;
    for (size_t i = 0; i < node_.inputs.size(); ++i) {
      if (in(i).height != y.height || in(i).width != y.width) fail("input " + std::to_string(i), "the size of " + text(y), text(in(i)));
      channels += in(i).channels;
    }
    if (channels > kMostElements) fail("channels", "at most " + std::to_string(kMostElements), std::to_string(channels));
    y.channels = static_cast<int>(channels);
    return y;
  }

  void mlp(size_t first) const {
    const idx c = in().channels, m = length(first + 1);
    weight(first, m * c), weight(first + 2, m * c), weight(first + 3, c);
  }

  void odd(size_t i) const {
    if (length(i) % 2 == 0 || length(i) > kMostTaps) fail("weight " + std::to_string(i), "an odd number of floats", std::to_string(length(i)));
  }

  // Odd, so that the result has the image's size.
  idx square(size_t first) const {
    const int kh = attr(first, "kernel height", 1, 63), kw = attr(first + 1, "kernel width", 1, 63);
    if (kh % 2 == 0 || kw % 2 == 0) fail("kernel", "odd sizes", std::to_string(kh) + "x" + std::to_string(kw));
    return idx{2} * kh * kw;
  }

  Shape coordinate() const {
    attr(0, "mode", 0, 2);
    const idx c = in().channels, m = length(1);
    weight(0, m * c), weight(2, m * c), weight(3, c), weight(4, m * c), weight(5, c);
    return in();
  }

  Shape dot() const {
    if (in(0).channels != in(1).channels) fail("second input", std::to_string(in(0).channels) + " channels", text(in(1)));
    weight(0, 1);
    return attr(0, "mean", 0, 1) ? Shape{in(0).channels, 1, 1} : in(0);
  }

  Shape additive() const {
    same("second input", in(0), in(1));
    const idx d = in().channels, e = length(1);
    weight(0, e * 2 * d), weight(2, e), weight(3, 1);
    return {in().channels, 1, 1};
  }

  Shape output() const {
    const Shape& x = in();
    switch (node_.op) {
      case Op::conv: return conv();
      case Op::max_pool: return window(x.channels, true);
      case Op::avg_pool: attr(8, "count_include_pad", 0, 1); return window(x.channels, true);
      case Op::global_pool: attr(0, "kind", 0, 1); return {x.channels, 1, 1};
      case Op::add: case Op::mul: return binary();
      case Op::act: attr(0, "act", 0, kMostAct); return x;
      case Op::affine: attr(0, "act", 0, kMostAct), weight(0, x.channels), weight(1, x.channels); return x;
      case Op::concat: return concat();
      case Op::channel_pool: return {attr(0, "order", 0, 3) < 2 ? 2 : 1, x.height, x.width};
      case Op::line_pool:
        attr(1, "kind", 0, 1);
        return attr(0, "axis", 0, 1) == 0 ? Shape{x.channels, x.height, 1} : Shape{x.channels, 1, x.width};
      case Op::cbam: mlp(0), weight(4, square(0)), weight(5, 1); return x;
      case Op::se: attr(0, "act", 0, kMostAct), attr(1, "gate", 0, kMostAct), mlp(0); return x;
      case Op::eca: odd(0); return x;
      case Op::scse: attr(0, "act", 0, kMostAct), mlp(0), weight(4, x.channels), weight(5, 1); return x;
      case Op::sa: attr(0, "order", 0, 1), weight(0, square(1)), weight(1, 1); return x;
      case Op::csa:
        odd(0), weight(1, 2), weight(2, 1);
        if (!attr(0, "pool", 0, 1)) return x;
        if (x.height < 2 || x.width < 2) fail("input", "at least 2x2 pixels to pool", text(x));
        return {x.channels, x.height / 2, x.width / 2};
      case Op::coordinate: return coordinate();
      case Op::dot_attention: return dot();
      case Op::additive_attention: return additive();
    }
    return x;
  }

  const Graph& graph_;
  const Node& node_;
  size_t index_;
};

[[noreturn]] void fail(const std::string& text) { throw std::invalid_argument("engine file: " + text); }

}  // namespace

const char* op_name(Op op) {
  const Signature* s = signature(op);
  return s ? s->name : "unknown";
}

void check_graph(const Graph& graph) {
  for (size_t i = 0; i < graph.values.size(); ++i) {
    const Shape& s = graph.values[i];
    if (idx{s.height} * s.width > kMostElements || (s.channels + idx{15}) * s.height * s.width > kMostElements)
      fail("value " + std::to_string(i) + ": expected at most " + std::to_string(kMostElements) + " elements, got " + text(s));
  }
  std::vector<bool> written(graph.values.size());
  written[static_cast<size_t>(graph.input)] = true;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const Node& node = graph.nodes[i];
    for (const int input : node.inputs)
      if (!written[static_cast<size_t>(input)]) fail("node " + std::to_string(i) + ": reads value " + std::to_string(input) + " before it is written");
    Checker(graph, i).run();
    const auto output = static_cast<size_t>(node.output);
    if (written[output]) fail("node " + std::to_string(i) + ": writes value " + std::to_string(output) + ", which has been written");
    written[output] = true;
  }
  if (graph.outputs.empty()) fail("expected at least one output");
  for (size_t i = 0; i < written.size(); ++i)
    if (!written[i]) fail("value " + std::to_string(i) + ": no node writes it");
}

}  // namespace ff::engine
