// SPDX-License-Identifier: Apache-2.0
// Convolutions as steps.
#include <algorithm>

#include "engine/low_tiles.h"
#include "engine/plan/lower.h"

namespace ff::engine {
namespace {

// How a dense convolution is computed: sum by sum, or with fewer products.
enum class Method { direct, winograd, strassen };

using ConvStage = graph::Stage<graph::Conv>;

bool is_low(const Lowering& l, const ConvStage& s) {
  return computes_low(s.op, l.taken_as(s.input), l.shape(s.output));
}

// What a convolution takes its input in.
Type reads(const Lowering& l, const ConvStage& s) {
  if (s.op.depthwise()) return l.type_of(s.input);
  return is_low(l, s) ? l.taken_as(s.input) : Type::float32;
}

float* pack(Lowering& l, const ConvStage& s, Method method, int* panel) {
  const Kernels& k = l.kernels();
  const Window& window = s.op.sliding.window;
  const Shape& y = l.shape(s.output);
  const int in = l.shape(s.input).channels, out = y.channels;
  const float* w = s.op.weight.data;
  float* packed;
  if (s.op.depthwise()) {
    *panel = 1, packed = l.packed(k.depthwise_packed(in, window));
    k.pack_depthwise(packed, w, in, window);
  } else if (is_low(l, s)) {
    const LowTiles& tiles = *k.tiles(reads(l, s));
    *panel = tiles.panel(in, out, y.height, y.width, window), packed = l.packed(tiles.packed(in, out, window));
    tiles.pack_weights(packed, w, in, out, window, *panel);
  } else if (method == Method::winograd) {
    *panel = k.winograd_panel(in, out, y.height, y.width), packed = l.packed(k.winograd_packed(in, out));
    k.pack_winograd(packed, w, in, out, *panel);
  } else if (method == Method::strassen) {
    *panel = k.strassen_panel(in, out, y.height, y.width), packed = l.packed(k.strassen_packed(in, out));
    k.pack_strassen(packed, w, in, out, *panel);
  } else {
    *panel = k.conv_panel(in, out, y.height, y.width, window), packed = l.packed(k.conv_packed(in, out, window));
    k.pack_conv(packed, w, in, out, window, *panel);
  }
  return packed;
}

const float* biases(Lowering& l, const ConvStage& s) {
  const std::vector<float>* more = is_low(l, s) && reads(l, s) == Type::uint8 ? l.correction(s.origin) : nullptr;
  if (!more || more->empty()) return l.padded(s.op.bias);
  std::vector<float> sums(*more);
  for (size_t i = 0; i < sums.size(); ++i) sums[i] += s.op.bias.data[i];
  return l.padded({sums.data(), s.op.bias.count});
}

// A convolution with its packed weights, from types as values have them; its maps have sizes and no places.
Conv describe(Lowering& l, const ConvStage& s, Method method) {
  const auto sized = [&](int value) {
    const Shape& shape = l.shape(value);
    return Map{nullptr, shape.channels, shape.height, shape.width, 0, 0};
  };
  Conv c{};
  c.x = sized(s.input), c.y = sized(s.output), c.window = s.op.sliding.window;
  c.x_type = reads(l, s), c.x_quant = l.quant_of(s.input, c.x_type);
  c.y_type = l.type_of(s.output), c.y_quant = l.quant_of(s.output, c.y_type);
  c.weights = pack(l, s, method, &c.panel), c.tiles = is_low(l, s) ? l.kernels().tiles(c.x_type) : nullptr;
  c.epilogue.bias = biases(l, s), c.epilogue.act = s.op.act;
  return c;
}

// Winograd's minimal filtering takes a quarter of the products of a 3×3 convolution, at the price of the transforms;
// Strassen's algorithm seven eighths of those of a 1×1 one.
Method method_of(const Lowering& l, const ConvStage& s, const Slot& x, const Slot& other) {
  const Window& w = s.op.sliding.window;
  const Shape& y = l.shape(s.output);
  if (l.target().strict || is_low(l, s) || w.sh != 1 || w.sw != 1 || s.op.groups != 1 || s.op.dilated())
    return Method::direct;
  if (w.kh == 3 && w.kw == 3 && x.channels >= 16 && y.channels >= 16 && y.height >= 8 && y.width >= 8)
    return Method::winograd;
  const bool close = x.row == x.width * l.kernels().lanes && x.type == Type::float32 && other.buffer < 0;
  return close && halves(s.op, l.shape(s.input), y, other.buffer >= 0, l.target()) ? Method::strassen : Method::direct;
}

// A convolution that reads the image as it came.
void stem(Lowering& l, const Node& node, const graph::Conv& op) {
  const Slot y = l.output(node), other = l.residual(node, y.type);
  const Shape& shape = l.shape(node.inputs[0]);
  const Kernels& k = l.kernels();
  Stem s{};
  s.channels = shape.channels, s.height = shape.height, s.width = shape.width, s.window = op.sliding.window;
  s.panel = k.stem_panel(s.channels, y.channels, y.height, y.width, s.window);
  float* packed = l.packed(k.conv_packed(s.channels, y.channels, s.window));
  k.pack_conv(packed, op.weight.data, s.channels, y.channels, s.window, s.panel);
  s.weights = packed;
  s.epilogue.bias = l.padded(op.bias), s.epilogue.act = op.act, s.epilogue.after = node.after;
  s.y = {nullptr, y.channels, y.height, y.width, y.row, y.block};
  l.want_scratch(k.stem_scratch(s));
  const Program* p = &l.program();
  const auto pools = std::make_shared<PoolSlots>();
  Step& step = l.add("stem", kNoSlot, y, {other}, [=, &k](const Frame& f, const Map&, const Map& to, Part part) {
    const Normalisation& n = f.type == Pixels::uint8 ? p->bytes : p->floats;
    Stem call = s;
    call.x = f.image, call.type = f.type, call.y = to, call.scratch = f.scratch;
    call.epilogue.residual = f.map(other), call.epilogue.pools = pools->of(f);
    if (!n.scale.empty()) call.scale = n.scale.data(), call.shift = n.shift.data();
    k.stem(call, part);
  });
  step.panel = s.panel, step.pools = pools;
  step.macs = 1. * y.height * y.width * static_cast<double>(op.weight.count);
  step.bytes += 4. * (static_cast<double>(op.weight.count) + 1. * s.channels * s.height * s.width);
}

// As few groups at a time as fill whole vectors of inputs and of outputs; where none do, all of them.
int groups_together(int groups, int inputs, int outputs, int lanes) {
  for (int n = 1; n < groups; ++n)
    if (groups % n == 0 && inputs / groups * n % lanes == 0 && outputs / groups * n % lanes == 0) return n;
  return groups;
}

// Several groups: each few of them a dense convolution of their own channels, with zeros between the groups.
void groups(Lowering& l, const Node& node, const graph::Conv& op) {
  const Slot x = l.input(node), y = l.output(node), other = l.residual(node);
  const Kernels& k = l.kernels();
  const Window window = op.sliding.window;
  const int each_in = x.channels / op.groups, each_out = y.channels / op.groups, taps = window.kh * window.kw;
  const int together = groups_together(op.groups, x.channels, y.channels, k.lanes), parts = op.groups / together;
  const int in = each_in * together, out = each_out * together, in_blocks = l.blocks(in), out_blocks = l.blocks(out);
  Conv c{};
  c.window = window, c.panel = k.conv_panel(in, out, y.height, y.width, window);
  c.epilogue.bias = l.padded(op.bias), c.epilogue.act = op.act, c.epilogue.after = node.after;
  const size_t each = k.conv_packed(in, out, window), lines = each / 16 * 16 + 16;
  float* packed = l.packed(lines * static_cast<size_t>(parts));
  c.weights = packed;
  std::vector<float> dense(static_cast<size_t>(out) * static_cast<size_t>(in * taps));
  for (int p = 0; p < parts; ++p) {
    std::fill(dense.begin(), dense.end(), 0.f);
    for (int o = 0; o < out; ++o)
      std::copy_n(op.weight.data + (idx{p} * out + o) * each_in * taps, each_in * taps,
                  dense.data() + (idx{o} * in + o / each_out * each_in) * taps);
    k.pack_conv(packed + static_cast<size_t>(p) * lines, dense.data(), in, out, window, c.panel);
  }
  Step& step = l.add("grouped", x, y, {other}, [=, &k](const Frame& f, const Map& from, const Map& to, Part part) {
    for (int p = 0; p < parts; ++p) {
      const int first = p * out_blocks;
      const Part own{part.y0, part.y1, std::max(part.b0 - first, 0), std::min(part.b1 - first, out_blocks)};
      if (own.b0 >= own.b1) continue;
      Conv call = c;
      call.x = from, call.y = to, call.epilogue.residual = f.map(other);
      call.x.channels = in, call.x.data += p * in_blocks * from.block;
      for (Map* m : {&call.y, &call.epilogue.residual})
        if (m->data) m->channels = out, m->data += first * m->block;
      call.weights += static_cast<size_t>(p) * lines, call.epilogue.bias += first * k.lanes;
      k.conv(call, own);
    }
  });
  step.panel = parts > 1 ? out_blocks : c.panel;
  step.macs = 1. * y.height * y.width * static_cast<double>(op.weight.count), step.products = step.macs * together;
  step.bytes += 4. * static_cast<double>(op.weight.count);
}

}  // namespace

void lower(Lowering& l, const Node& node, const graph::DilatedConv& op) { lower(l, node, op.conv); }

void lower(Lowering& l, const Node& node, const graph::Conv& op) {
  const ConvStage s{op, node.inputs[0], node.output, node.origin};
  if (op.grouped()) return groups(l, node, op);
  if (l.takes_image(s.input) && !op.depthwise() && !op.dilated()) return stem(l, node, op);
  const Slot x = l.read(s.input, reads(l, s)), y = l.output(node), other = l.residual(node, y.type);
  const Method how = method_of(l, s, x, other);
  const Kernels& k = l.kernels();
  Conv c = describe(l, s, how);
  c.x_quant = x.quant, c.residual_quant = other.quant, c.epilogue.after = node.after;
  if (how != Method::direct) {
    c.x = {nullptr, x.channels, x.height, x.width, x.row, x.block},
    c.y = {nullptr, y.channels, y.height, y.width, y.row, y.block};
    l.want_scratch((how == Method::winograd ? k.winograd_scratch : k.strassen_scratch)(c));
  }
  const auto pools = std::make_shared<PoolSlots>();
  const bool depthwise = op.depthwise();
  const char* name = depthwise                 ? "depthwise"
                     : how == Method::winograd ? "winograd"
                     : how == Method::strassen ? "strassen"
                                               : "conv";
  Step& step = l.add(name, x, y, {other}, [=, &k](const Frame& f, const Map& from, const Map& to, Part part) {
    Conv call = c;
    call.x = from, call.y = to;
    call.epilogue.residual = f.map(other), call.epilogue.pools = pools->of(f);
    if (how == Method::winograd) return k.winograd(call, f.scratch, part);
    if (how == Method::strassen) return k.strassen(call, f.scratch, part);
    (depthwise ? k.depthwise : k.conv)(call, part);
  });
  step.panel = c.panel, step.pools = pools;
  step.macs = 1. * y.height * y.width * static_cast<double>(op.weight.count);
  if (how == Method::winograd) step.band = 4, step.products = step.macs / 2.5;  // a quarter, and the transforms
  if (how == Method::strassen) step.band = k.strassen_band(y.height, y.width);
  step.bytes += 4. * static_cast<double>(op.weight.count);
}

namespace {

// The convolutions of strips, described, and what runs them.
struct StripConvs {
  bool has[3];
  Conv conv[3];  // expand, depthwise, project

  int first() const { return has[0] ? 0 : has[1] ? 1 : 2; }
  int last() const { return has[2] ? 2 : 1; }
  // The call, with the convolutions in `c`.
  Strips call(Conv (&c)[3], const Gates& gates, float* scratch, const Slot& x) const {
    for (int i = 0; i < 3; ++i) c[i] = conv[i];
    return {gates,  has[0] ? &c[0] : nullptr, has[1] ? &c[1] : nullptr, has[2] ? &c[2] : nullptr, scratch, x.type,
            x.quant};
  }
};

}  // namespace

void lower(Lowering& l, const Node& node, const graph::Strips& op) {
  const std::optional<ConvStage>* stages[] = {&op.expand, &op.depthwise, &op.project};
  StripConvs s{};
  double macs = 0, weights = 0;
  std::string name;
  for (int i = 0; i < 3; ++i) {
    const auto& stage = *stages[i];
    if (!stage) continue;
    s.has[i] = true, s.conv[i] = describe(l, *stage, Method::direct);
    const Shape& shape = l.shape(stage->output);
    const auto count = static_cast<double>(stage->op.weight.count);
    macs += count * shape.height * shape.width, weights += count;
    name += (name.empty() ? "" : "+") + std::string(i == 1 ? "depthwise" : "conv");
  }
  // A depthwise convolution writes what its reader takes, which take_strips has seen to.
  if (s.has[1] && s.has[2]) s.conv[1].y_type = s.conv[2].x_type, s.conv[1].y_quant = s.conv[2].x_quant;
  if (s.has[0] && s.has[1]) s.conv[1].x_type = s.conv[0].y_type, s.conv[1].x_quant = s.conv[0].y_quant;
  const GateSlots gates = l.gates(node.inputs[0]);
  const Slot x = gates.x.buffer >= 0 ? gates.x : l.value(node.inputs[0]), y = l.output(node),
             other = l.residual(node, y.type);
  const int last = s.last(), first = s.first();
  s.conv[last].y_type = y.type, s.conv[last].y_quant = y.quant, s.conv[last].residual_quant = other.quant,
  s.conv[last].epilogue.after = node.after;
  // Any address stands for gates that are there.
  const auto there = [&](const Slot& slot) { return slot.buffer >= 0 ? s.conv[last].weights : nullptr; };
  Conv sized[3];
  const Kernels& k = l.kernels();
  l.want_scratch(k.strips_scratch(
      s.call(sized, {there(gates.channel), there(gates.line), there(gates.column), nullptr}, nullptr, x)));
  const auto pools = std::make_shared<PoolSlots>();
  Step& step = l.add(name.c_str(), x, y, {gates.channel, gates.line, gates.column, other},
                     [=, &k](const Frame& f, const Map& from, const Map& to, Part part) {
                       Conv c[3];
                       const Strips call =
                           s.call(c, {f.buffer(gates.channel), f.buffer(gates.line), f.buffer(gates.column), nullptr},
                                  f.scratch, x);
                       c[first].x = from, c[last].y = to;
                       c[last].epilogue.residual = f.map(other), c[last].epilogue.pools = pools->of(f);
                       k.strips(call, part);
                     });
  step.pools = pools, step.macs = macs, step.bytes += 4 * weights;
  step.by_blocks = !s.has[2], step.panel = s.has[0] ? s.conv[0].panel : 1;
}

void lower(Lowering& l, const Node& node, const graph::MeanConv& op) {
  const ConvStage& s = op.conv;
  const Slot x = l.input(node), y = l.output(node);
  const Shape& shape = l.shape(s.output);
  const Window window = s.op.sliding.window, whole{window.kh, window.kw, 1, 1, 0, 0};
  const Slot means = l.new_map({x.channels, window.kh, window.kw});
  const int height = shape.height, width = shape.width;
  l.add("tap means", x, means, {}, [=, &glue = l.glue()](const Frame&, const Map& from, const Map& to, Part part) {
    glue.tap_means({from, to, window, height, width}, part);
  });
  const Kernels& k = l.kernels();
  Conv c{};
  c.window = whole, c.panel = k.conv_panel(x.channels, y.channels, 1, 1, whole);
  float* packed = l.packed(k.conv_packed(x.channels, y.channels, whole));
  k.pack_conv(packed, s.op.weight.data, x.channels, y.channels, whole, c.panel);
  c.weights = packed, c.epilogue.bias = l.padded(s.op.bias);
  Step& step = l.add("conv", means, y, {}, [=, &k](const Frame&, const Map& from, const Map& to, Part part) {
    Conv call = c;
    call.x = from, call.y = to;
    k.conv(call, part);
  });
  step.panel = c.panel, step.macs = static_cast<double>(s.op.weight.count);
}

}  // namespace ff::engine
