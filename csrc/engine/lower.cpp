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

// An affine map that alone reads the input is applied while the image is read, which keeps padding the normalised zero.
void Builder::find_image() {
  image_ = graph_.input;
  int readers = 0;
  size_t reader = 0;
  for (size_t i = 0; i < graph_.nodes.size(); ++i)
    for (const int input : graph_.nodes[i].inputs)
      if (input == graph_.input) ++readers, reader = i;
  if (readers != 1 || std::count(graph_.outputs.begin(), graph_.outputs.end(), graph_.input)) return;
  const Node& node = graph_.nodes[reader];
  if (node.op != Op::affine || node.attrs[0] != 0) return;
  image_ = node.output, done_[reader] = true;
  const float *scale = node.weights[0].data, *shift = node.weights[1].data;
  const auto channels = static_cast<size_t>(node.weights[0].count);
  program_.floats = {{scale, scale + channels}, {shift, shift + channels}};
  Normalisation& bytes = program_.bytes;
  if (bytes.scale.empty()) bytes = {std::vector<float>(channels, 1.f), std::vector<float>(channels, 0.f)};
  for (size_t c = 0; c < channels; ++c) {
    bytes.scale[c] *= scale[c];
    bytes.shift[c] = bytes.shift[c] * scale[c] + shift[c];
  }
}

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
  const Slot other = residual(node), y = output(node);
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

void Builder::conv(const Node& node) {
  const bool depthwise = node.attrs[8] > 1;
  if (node.inputs[0] == image_ && !depthwise && values_[static_cast<size_t>(image_)].buffer < 0) return stem(node);
  const Slot x = input(node), other = residual(node), y = output(node);
  Conv c{};
  c.window = window_of(node);
  c.panel = depthwise ? 1 : k_.conv_panel(x.channels, y.channels, y.height, y.width, c.window);
  const float* w = node.weights[0].data;
  float* packed = program_.weights.take(depthwise ? k_.depthwise_packed(x.channels, c.window) : k_.conv_packed(x.channels, y.channels, c.window));
  if (depthwise)
    k_.pack_depthwise(packed, w, x.channels, c.window);
  else
    k_.pack_conv(packed, w, x.channels, y.channels, c.window, c.panel);
  c.weights = packed;
  c.epilogue.bias = padded(node.weights[1].data, node.weights[1].count);
  c.epilogue.act = static_cast<Act>(node.attrs[9]), c.epilogue.after = after();
  const auto kernel = depthwise ? k_.depthwise : k_.conv;
  const auto pools = std::make_shared<PoolSlots>();
  Step& step = add(depthwise ? "depthwise" : "conv", x, y, {other}, [=](const Frame& f, const Map& from, const Map& to, Part part) {
    Conv call = c;
    call.x = from, call.y = to, call.epilogue.residual = f.map(other), call.epilogue.pools = pools->of(f);
    kernel(call, part);
  });
  step.panel = c.panel, step.pools = pools;
  step.macs = 1. * y.height * y.width * static_cast<double>(node.weights[0].count);
  step.bytes += 4. * static_cast<double>(node.weights[0].count);
}

void Builder::window_pool(const Node& node) {
  const Slot x = input(node), other = residual(node), y = output(node);
  WindowPool p{};
  p.window = window_of(node), p.bottom = node.attrs[6], p.right = node.attrs[7];
  p.mean = node.op == Op::avg_pool, p.count_padding = p.mean && node.attrs[8];
  add(op_name(node.op), x, y, {other}, [=, &glue = glue_](const Frame& f, const Map& from, const Map& to, Part part) {
    WindowPool call = p;
    call.x = from, call.y = to, call.residual = f.map(other);
    glue.window_pool(call, part);
  });
}

void Builder::global_pool(const Node& node) {
  const Slot x = input(node), y = output(node), pooled = lines(x.channels, x.height);
  const bool max = node.attrs[0] == 1;
  PoolSlots wanted;
  (max ? wanted.line_max : wanted.line_sum) = pooled;
  pool(x, wanted);
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
  pool(x, wanted);
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
  for (const int id : node.inputs) inputs.push_back(value(id));
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
