// SPDX-License-Identifier: Apache-2.0
// Convolutions, pooling and arithmetic as steps.
#include <algorithm>

#include "engine/builder.h"

namespace ff::engine {
namespace {

Window window_of(const Node& node) {
  const auto& a = node.attrs;
  return {a[0], a[1], a[2], a[3], a[4], a[5]};
}

}  // namespace

void Builder::import(const Slot& y) {
  const Program* p = &program_;
  add("input", kNoSlot, y, {}, [=, &glue = glue_](const Frame& f, const Map&, const Map& to, Part part) {
    const Normalisation& n = f.type == Pixels::uint8 ? p->bytes : p->floats;
    const bool plain = n.scale.empty();
    glue.import({f.image, f.type, plain ? nullptr : n.scale.data(), plain ? nullptr : n.shift.data(), to}, part);
  });
}

void Builder::lower(const Node& node) {
  switch (node.op) {
    case Op::conv: return conv(node);
    case Op::max_pool: case Op::avg_pool: return window_pool(node);
    case Op::global_pool: return global_pool(node);
    case Op::add: case Op::mul: return binary(node);
    case Op::act: case Op::affine: return affine(node);
    case Op::concat: return concat(node);
    case Op::channel_pool: return channel_pool(node);
    case Op::line_pool: return line_pool(node);
    case Op::cbam: return cbam(node);
    case Op::se: return se(node);
    case Op::eca: return eca(node);
    case Op::scse: return scse(node);
    case Op::sa: return sa(node);
    case Op::csa: return csa(node);
    case Op::coordinate: return coordinate(node);
    case Op::dot_attention: return dot_attention(node);
    case Op::additive_attention: return additive_attention(node);
  }
}

// A convolution that reads the image as it came.
void Builder::stem(const Node& node) {
  const Slot y = output(node), other = residual(y.type);
  const Shape& shape = graph_.values[static_cast<size_t>(image_)];
  Stem s{};
  s.channels = shape.channels, s.height = shape.height, s.width = shape.width, s.window = window_of(node);
  s.panel = k_.stem_panel(s.channels, y.channels, y.height, y.width, s.window);
  float* packed = program_.weights.take(k_.conv_packed(s.channels, y.channels, s.window));
  k_.pack_conv(packed, node.weights[0].data, s.channels, y.channels, s.window, s.panel);
  s.weights = packed;
  s.epilogue.bias = padded(node.weights[1].data, node.weights[1].count);
  s.epilogue.act = static_cast<Act>(node.attrs[9]), s.epilogue.after = after();
  s.y = {nullptr, y.channels, y.height, y.width, y.row, y.block};
  program_.scratch = std::max(program_.scratch, k_.stem_scratch(s));
  const Program* p = &program_;
  const auto pools = std::make_shared<PoolSlots>();
  Step& step = add("stem", kNoSlot, y, {other}, [=, &k = k_](const Frame& f, const Map&, const Map& to, Part part) {
    const Normalisation& n = f.type == Pixels::uint8 ? p->bytes : p->floats;
    Stem call = s;
    call.x = f.image, call.type = f.type, call.y = to, call.scratch = f.scratch;
    call.epilogue.residual = f.map(other), call.epilogue.pools = pools->of(f);
    if (!n.scale.empty()) call.scale = n.scale.data(), call.shift = n.shift.data();
    k.stem(call, part);
  });
  step.panel = s.panel, step.pools = pools;
  step.macs = 1. * y.height * y.width * static_cast<double>(node.weights[0].count);
  step.bytes += 4. * (static_cast<double>(node.weights[0].count) + 1. * s.channels * s.height * s.width);
}

// What a convolution takes its input in.
Type Builder::reads(const Node& node) const {
  if (node.attrs[8] > 1) return type_of(node.inputs[0]);
  return is_low(static_cast<int>(&node - graph_.nodes.data())) ? options_.type : Type::float32;
}

// A convolution with its packed weights; its maps have sizes and no places.
Conv Builder::describe(const Node& node, Method method) {
  const bool depthwise = node.attrs[8] > 1;
  const auto sized = [&](int value) {
    const Shape& s = graph_.values[static_cast<size_t>(value)];
    return Map{nullptr, s.channels, s.height, s.width, 0, 0};
  };
  Conv c{};
  c.x = sized(node.inputs[0]), c.y = sized(node.output), c.window = window_of(node);
  const int in = c.x.channels, out = c.y.channels, index = static_cast<int>(&node - graph_.nodes.data());
  const float* w = node.weights[0].data;
  c.y_type = type_of(node.output), c.y_quant = quant_of(node.output, c.y_type);
  c.x_type = reads(node);
  c.x_quant = quant_of(node.inputs[0], c.x_type);
  float* packed;
  if (depthwise) {
    c.panel = 1, packed = program_.weights.take(k_.depthwise_packed(in, c.window));
    k_.pack_depthwise(packed, w, in, c.window);
  } else if (is_low(index)) {
    c.panel = k_.conv_panel(in, out, c.y.height, c.y.width, c.window);
    packed = program_.weights.take(k_.low_packed(options_.type, in, out, c.window));
    k_.pack_low(options_.type, packed, w, in, out, c.window, c.panel);
  } else if (method == Method::winograd) {
    c.panel = k_.winograd_panel(in, out, c.y.height, c.y.width), packed = program_.weights.take(k_.winograd_packed(in, out));
    k_.pack_winograd(packed, w, in, out, c.panel);
  } else if (method == Method::strassen) {
    c.panel = k_.strassen_panel(in, out, c.y.height, c.y.width), packed = program_.weights.take(k_.strassen_packed(in, out));
    k_.pack_strassen(packed, w, in, out, c.panel);
  } else {
    c.panel = k_.conv_panel(in, out, c.y.height, c.y.width, c.window), packed = program_.weights.take(k_.conv_packed(in, out, c.window));
    k_.pack_conv(packed, w, in, out, c.window, c.panel);
  }
  c.weights = packed;
  c.epilogue.bias = padded(node.weights[1].data, node.weights[1].count);
  c.epilogue.act = static_cast<Act>(node.attrs[9]);
  return c;
}

// Winograd's minimal filtering takes a quarter of the products of a 3×3 convolution, at the price of the transforms;
// Strassen's algorithm seven eighths of those of a 1×1 one.
Builder::Method Builder::method(const Node& node, const Slot& x, const Slot& other) const {
  const auto& a = node.attrs;
  const Shape& y = graph_.values[static_cast<size_t>(node.output)];
  if (options_.strict || is_low(static_cast<int>(&node - graph_.nodes.data())) || a[2] != 1 || a[3] != 1 || a[8] != 1) return Method::direct;
  if (a[0] == 3 && a[1] == 3 && x.channels >= 16 && y.channels >= 16 && y.height >= 8 && y.width >= 8) return Method::winograd;
  const bool close = x.row == x.width * k_.lanes && x.type == Type::float32 && other.buffer < 0;
  return close && halves(node_) ? Method::strassen : Method::direct;
}

void Builder::conv(const Node& node) {
  const Chain& joined = chains_[static_cast<size_t>(node_)];
  if (joined.any()) return chain(joined, gates_[static_cast<size_t>(node.inputs[0])]);
  const bool depthwise = node.attrs[8] > 1;
  if (node.inputs[0] == image_ && !depthwise && !options_.apart && values_[static_cast<size_t>(image_)].buffer < 0) return stem(node);
  const Slot x = read(node.inputs[0], reads(node)), y = output(node), other = residual(y.type);
  const Method how = method(node, x, other);
  Conv c = describe(node, how);
  c.x_quant = x.quant, c.y_type = y.type, c.y_quant = y.quant, c.residual_quant = other.quant;
  c.epilogue.after = after();
  if (how != Method::direct) {
    c.x = {nullptr, x.channels, x.height, x.width, x.row, x.block}, c.y = {nullptr, y.channels, y.height, y.width, y.row, y.block};
    program_.scratch = std::max(program_.scratch, (how == Method::winograd ? k_.winograd_scratch : k_.strassen_scratch)(c));
  }
  const auto pools = std::make_shared<PoolSlots>();
  const char* name = depthwise ? "depthwise" : how == Method::winograd ? "winograd" : how == Method::strassen ? "strassen" : "conv";
  Step& step = add(name, x, y, {other}, [=, &k = k_](const Frame& f, const Map& from, const Map& to, Part part) {
    Conv call = c;
    call.x = from, call.y = to, call.epilogue.residual = f.map(other), call.epilogue.pools = pools->of(f);
    if (how != Method::direct) return (how == Method::winograd ? k.winograd : k.strassen)(call, f.scratch, part);
    (depthwise ? k.depthwise : k.conv)(call, part);
  });
  step.panel = c.panel, step.pools = pools;
  step.macs = 1. * y.height * y.width * static_cast<double>(node.weights[0].count);
  if (how == Method::winograd) step.band = 4, step.products = step.macs / 2.5;  // a quarter, and the transforms
  if (how == Method::strassen) step.band = k_.strassen_band(y.height, y.width);
  step.bytes += 4. * static_cast<double>(node.weights[0].count);
}

// Convolutions and the gates in front of them by strips of rows.
void Builder::chain(const Chain& chain, const GateSlots& gates) {
  const int nodes[] = {chain.expand, chain.depthwise, chain.project};
  int first = -1;
  double macs = 0, weights = 0;
  Conv convs[3] = {};
  std::string name;
  for (int i = 0; i < 3; ++i) {
    if (nodes[i] < 0) continue;
    const Node& node = node_at(nodes[i]);
    const Shape& shape = graph_.values[static_cast<size_t>(node.output)];
    const auto count = static_cast<double>(node.weights[0].count);
    if (first < 0) first = nodes[i];
    convs[i] = describe(node, Method::direct);
    // A depthwise convolution writes what its reader takes.
    if (i == 2 && chain.depthwise >= 0) convs[1].y_type = convs[2].x_type, convs[1].y_quant = convs[2].x_quant;
    if (i == 1 && chain.expand >= 0) convs[1].x_type = convs[0].y_type, convs[1].x_quant = convs[0].y_quant;
    macs += count * shape.height * shape.width, weights += count;
    name += (name.empty() ? "" : "+") + std::string(i == 1 ? "depthwise" : "conv");
  }
  const Slot x = gates.x.buffer >= 0 ? gates.x : value(node_at(first).inputs[0]), y = output(node_at(node_));
  const Slot other = residual(y.type);
  const int last = chain.project >= 0 ? 2 : 1, head = chain.expand >= 0 ? 0 : chain.depthwise >= 0 ? 1 : 2;
  convs[last].y_type = y.type, convs[last].y_quant = y.quant, convs[last].residual_quant = other.quant;
  const bool has[] = {chain.expand >= 0, chain.depthwise >= 0, chain.project >= 0};
  const Conv expand = convs[0], depthwise = convs[1], project = convs[2];
  const Act behind = after();
  const auto pools = std::make_shared<PoolSlots>();
  const auto strips = [=](Conv (&c)[3], const Gates& g, float* scratch) {
    c[0] = expand, c[1] = depthwise, c[2] = project;
    return Strips{g, has[0] ? &c[0] : nullptr, has[1] ? &c[1] : nullptr, has[2] ? &c[2] : nullptr, scratch, x.type, x.quant};
  };
  // Any address stands for gates that are there.
  const auto there = [&](const Slot& s) { return s.buffer >= 0 ? expand.weights + 1 : nullptr; };
  Conv sized[3];
  const Gates present{there(gates.channel), there(gates.line), there(gates.column), nullptr};
  program_.scratch = std::max(program_.scratch, k_.strips_scratch(strips(sized, present, nullptr)));
  const std::vector<Slot> others{gates.channel, gates.line, gates.column, other};
  Step& step = add(name.c_str(), x, y, others, [=, &k = k_](const Frame& f, const Map& from, const Map& to, Part part) {
    Conv c[3];
    const Strips call = strips(c, {f.buffer(gates.channel), f.buffer(gates.line), f.buffer(gates.column), nullptr}, f.scratch);
    c[head].x = from, c[last].y = to;
    c[last].epilogue.residual = f.map(other), c[last].epilogue.after = behind, c[last].epilogue.pools = pools->of(f);
    k.strips(call, part);
  });
  step.pools = pools, step.macs = macs, step.bytes += 4 * weights;
  step.by_blocks = !has[2], step.panel = has[0] ? expand.panel : 1;
}

void Builder::window_pool(const Node& node) {
  const Slot x = input(node), other = residual(Type::float32), y = output(node);
  WindowPool p{};
  p.window = window_of(node), p.bottom = node.attrs[6], p.right = node.attrs[7];
  p.mean = node.op == Op::avg_pool, p.count_padding = p.mean && node.attrs[8];
  add(op_name(node.op), x, y, {other}, [=, &glue = glue_](const Frame& f, const Map& from, const Map& to, Part part) {
    WindowPool call = p;
    call.x = from, call.y = to, call.residual = f.map(other);
    glue.window_pool(call, part);
  });
}

void Builder::mean_conv(const Node& node, const Node& conv) {
  const Slot x = input(conv), y = output(node);
  const Shape& shape = graph_.values[static_cast<size_t>(conv.output)];
  const Window window = window_of(conv), whole{window.kh, window.kw, 1, 1, 0, 0};
  const Slot means = new_slot({x.channels, window.kh, window.kw});
  const int height = shape.height, width = shape.width;
  add("tap means", x, means, {}, [=, &glue = glue_](const Frame&, const Map& from, const Map& to, Part part) {
    glue.tap_means({from, to, window, height, width}, part);
  });
  Conv c{};
  c.window = whole, c.panel = k_.conv_panel(x.channels, y.channels, 1, 1, whole);
  float* packed = program_.weights.take(k_.conv_packed(x.channels, y.channels, whole));
  k_.pack_conv(packed, conv.weights[0].data, x.channels, y.channels, whole, c.panel);
  c.weights = packed, c.epilogue.bias = padded(conv.weights[1].data, conv.weights[1].count);
  Step& step = add("conv", means, y, {}, [=, &k = k_](const Frame&, const Map& from, const Map& to, Part part) {
    Conv call = c;
    call.x = from, call.y = to;
    k.conv(call, part);
  });
  step.panel = c.panel, step.macs = static_cast<double>(conv.weights[0].count);
}

void Builder::global_pool(const Node& node) {
  const int maker = producer_[static_cast<size_t>(node.inputs[0])];
  if (maker >= 0 && done_[static_cast<size_t>(maker)] && node_at(maker).op == Op::conv && values_[static_cast<size_t>(node.inputs[0])].buffer < 0)
    return mean_conv(node, node_at(maker));
  const Slot x = input(node), y = output(node), pooled = lines(x.channels, x.height);
  const bool max = node.attrs[0] == 1;
  PoolSlots wanted;
  (max ? wanted.line_max : wanted.line_sum) = pooled;
  pool(node.inputs[0], wanted);
  const float scale = 1.f / (static_cast<float>(x.height) * static_cast<float>(x.width));
  Step& step = add("global_pool", pooled, y, {}, [=, &glue = glue_](const Frame& f, const Map&, const Map& to, Part) {
    const float* from = f.buffer(pooled);
    glue.reduce({max ? nullptr : from, max ? from : nullptr, pooled.width, scale, false, to});
  });
  step.by_rows = step.by_blocks = false;
}

void Builder::line_pool(const Node& node) {
  const Slot x = input(node), y = output(node);
  const bool columns = node.attrs[0] == 1, max = node.attrs[1] == 1;
  const Slot pooled = lines(x.channels, columns ? x.width : x.height);
  PoolSlots wanted;
  (columns ? max ? wanted.column_max : wanted.column_sum : max ? wanted.line_max : wanted.line_sum) = pooled;
  pool(node.inputs[0], wanted);
  float* scale = program_.weights.take(padded_size(x.channels));
  std::fill(scale, scale + x.channels, max ? 1.f : 1.f / static_cast<float>(columns ? x.height : x.width));
  add("line_pool", pooled, y, {}, [=, &glue = glue_](const Frame&, const Map& from, const Map& to, Part part) {
    Map lines = from;
    if (!columns) lines.width = 1, lines.height = pooled.width, lines.row = pooled.pixel;
    glue.affine({lines, to, scale, nullptr, Act::none}, part);
  });
}

void Builder::binary(const Node& node) {
  const Slot a = input(node), b = input(node, 1), y = output(node);
  const bool product = node.op == Op::mul;
  const Act act = static_cast<Act>(node.attrs[0]);
  add(op_name(node.op), a, y, {b}, [=, &glue = glue_](const Frame& f, const Map& from, const Map& to, Part part) {
    glue.binary({from, f.map(b), to, product, act}, part);
  });
}

void Builder::affine(const Node& node) {
  const Slot x = input(node), y = output(node);
  const bool scaled = node.op == Op::affine;
  const float* scale = scaled ? padded(node.weights[0].data, node.weights[0].count) : nullptr;
  const float* shift = scaled ? padded(node.weights[1].data, node.weights[1].count) : nullptr;
  const Act act = static_cast<Act>(node.attrs[0]);
  add(op_name(node.op), x, y, {}, [=, &glue = glue_](const Frame&, const Map& from, const Map& to, Part part) {
    glue.affine({from, to, scale, shift, act}, part);
  });
}

void Builder::concat(const Node& node) {
  std::vector<Slot> inputs;
  for (size_t i = 0; i < node.inputs.size(); ++i) inputs.push_back(input(node, i));
  const Slot y = output(node);
  Step& step = add("concat", kNoSlot, y, inputs, [=, &glue = glue_](const Frame& f, const Map&, const Map& to, Part part) {
    int first = 0;
    for (const Slot& x : inputs) {
      glue.place({f.map(x), to, first}, part);
      first += x.channels;
    }
  });
  step.by_blocks = false;
}

// Two planes, then the planes as channels of a map.
void Builder::channel_pool(const Node& node) {
  const Slot x = input(node), y = output(node);
  const int order = node.attrs[0];
  const Slot pair = planes({x.channels, x.height, x.width}, 2, 1, 1);
  Step& step = add("channel_pool", x, y, {pair}, [=, &glue = glue_](const Frame& f, const Map& from, const Map& to, Part part) {
    float *first = f.buffer(pair), *second = first + pair.block;
    PixelPools p{};
    p.x = from, p.row = pair.row;
    p.max = order == 0 || order == 3 ? first : order == 1 ? second : nullptr;
    p.mean = order == 0 ? second : order == 3 ? nullptr : first;
    glue.pixel_pools(p, part);
    for (int row = part.y0; row < part.y1; ++row)
      for (int i = 0; i < to.width; ++i) {
        float* pixel = to.data + row * to.row + i * y.pixel;
        std::fill(pixel, pixel + y.pixel, 0.f);
        for (int c = 0; c < to.channels; ++c) pixel[c] = first[c * pair.block + row * pair.row + i];
      }
  });
  step.by_blocks = false;
}

}  // namespace ff::engine
