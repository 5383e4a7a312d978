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

// Lines of channels as Pools has them.
Pools line_pools(float* sum, float* max) { return {sum, max, nullptr, nullptr}; }

}  // namespace

// An affine map that alone reads the input is applied while the image is read, which keeps padding the normalised zero.
void Builder::find_image() {
  image_ = graph_.input;
  int readers = 0, reader = -1;
  for (size_t i = 0; i < graph_.nodes.size(); ++i)
    for (const int input : graph_.nodes[i].inputs)
      if (input == graph_.input) ++readers, reader = static_cast<int>(i);
  if (readers != 1 || std::count(graph_.outputs.begin(), graph_.outputs.end(), graph_.input)) return;
  const Node& node = graph_.nodes[static_cast<size_t>(reader)];
  if (node.op != Op::affine || node.attrs[0] != 0) return;
  image_ = node.output, folded_ = reader;
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
  add("input", {}, y, [=, &glue = glue_](const Frame& f, Part part) {
    const Normalisation& n = f.type == Pixels::uint8 ? p->bytes : p->floats;
    const bool plain = n.scale.empty();
    glue.import({f.image, f.type, plain ? nullptr : n.scale.data(), plain ? nullptr : n.shift.data(), f.map(y)}, part);
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

bool Builder::stem(const Node& node) {
  const Slot y = value(node.output);
  const Shape& shape = graph_.values[static_cast<size_t>(image_)];
  Stem s{};
  s.channels = shape.channels, s.height = shape.height, s.width = shape.width, s.window = window_of(node);
  s.panel = k_.stem_panel(s.channels, y.channels, y.height, y.width, s.window);
  float* packed = program_.weights.take(k_.conv_packed(s.channels, y.channels, s.window));
  k_.pack_conv(packed, node.weights[0].data, s.channels, y.channels, s.window, s.panel);
  s.weights = packed;
  s.epilogue.bias = padded(node.weights[1].data, node.weights[1].count);
  s.epilogue.act = static_cast<Act>(node.attrs[9]);
  Stem sized = s;
  sized.y = {nullptr, y.channels, y.height, y.width, y.row, y.block};
  program_.scratch = std::max(program_.scratch, k_.stem_scratch(sized));
  const Program* p = &program_;
  Step& step = add("stem", {}, y, [=, &k = k_](const Frame& f, Part part) {
    const Normalisation& n = f.type == Pixels::uint8 ? p->bytes : p->floats;
    Stem call = s;
    call.x = f.image, call.type = f.type, call.y = f.map(y), call.scratch = f.scratch;
    if (!n.scale.empty()) call.scale = n.scale.data(), call.shift = n.shift.data();
    k.stem(call, part);
  });
  step.panel = s.panel;
  step.macs = 1. * y.height * y.width * static_cast<double>(node.weights[0].count);
  step.bytes += 4. * (static_cast<double>(node.weights[0].count) + 1. * s.channels * s.height * s.width);
  return true;
}

void Builder::conv(const Node& node) {
  const bool depthwise = node.attrs[8] > 1;
  if (node.inputs[0] == image_ && !depthwise && values_[static_cast<size_t>(image_)].buffer < 0 && stem(node)) return;
  const Slot x = value(node.inputs[0]), y = value(node.output);
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
  c.epilogue.act = static_cast<Act>(node.attrs[9]);
  const auto kernel = depthwise ? k_.depthwise : k_.conv;
  Step& step = add(depthwise ? "depthwise" : "conv", {x}, y, [=](const Frame& f, Part part) {
    Conv call = c;
    call.x = f.map(x), call.y = f.map(y);
    kernel(call, part);
  });
  step.panel = c.panel;
  step.macs = 1. * y.height * y.width * static_cast<double>(node.weights[0].count);
  step.bytes += 4. * static_cast<double>(node.weights[0].count);
}

void Builder::window_pool(const Node& node) {
  const Slot x = value(node.inputs[0]), y = value(node.output);
  WindowPool p{};
  p.window = window_of(node), p.bottom = node.attrs[6], p.right = node.attrs[7];
  p.mean = node.op == Op::avg_pool, p.count_padding = p.mean && node.attrs[8];
  add(op_name(node.op), {x}, y, [=, &glue = glue_](const Frame& f, Part part) {
    WindowPool call = p;
    call.x = f.map(x), call.y = f.map(y);
    glue.window_pool(call, part);
  });
}

void Builder::global_pool(const Node& node) {
  const Slot x = value(node.inputs[0]), y = value(node.output);
  const bool max = node.attrs[0] == 1;
  const Slot pooled = lines(x.channels, x.height);
  Step& step = add("line sums", {x, pooled}, x, [=, &glue = glue_](const Frame& f, Part part) {
    float* to = f.buffers[pooled.buffer];
    glue.line_pools({f.map(x), line_pools(max ? nullptr : to, max ? to : nullptr)}, part);
  });
  step.bordered.clear();
  const float scale = 1.f / (static_cast<float>(x.height) * static_cast<float>(x.width));
  Step& last = add("global_pool", {pooled}, y, [=, &glue = glue_](const Frame& f, Part) {
    const float* from = f.buffers[pooled.buffer];
    glue.reduce({max ? nullptr : from, max ? from : nullptr, pooled.width, scale, false, f.map(y)});
  });
  last.by_rows = last.by_blocks = false;
}

void Builder::line_pool(const Node& node) {
  const Slot x = value(node.inputs[0]), y = value(node.output);
  const bool columns = node.attrs[0] == 1, max = node.attrs[1] == 1;
  const Slot pooled = lines(x.channels, columns ? x.width : x.height);
  Step& step = add("line sums", {x, pooled}, x, [=, &glue = glue_](const Frame& f, Part part) {
    float* to = f.buffers[pooled.buffer];
    float *sum = max ? nullptr : to, *most = max ? to : nullptr;
    glue.line_pools({f.map(x), columns ? Pools{nullptr, nullptr, sum, most} : line_pools(sum, most)}, part);
  });
  step.bordered.clear();
  step.by_rows = !columns;
  const float scale = max ? 1.f : 1.f / static_cast<float>(columns ? x.height : x.width);
  float* scales = program_.weights.take(static_cast<size_t>(blocks(x.channels) * k_.lanes));
  std::fill(scales, scales + x.channels, scale);
  add("line_pool", {pooled}, y, [=, &glue = glue_](const Frame& f, Part part) {
    Map from = f.map(pooled);
    if (!columns) from.width = 1, from.height = pooled.width, from.row = pooled.row / pooled.width;
    glue.affine({from, f.map(y), scales, nullptr, Act::none}, part);
  });
}

void Builder::binary(const Node& node) {
  const Slot a = value(node.inputs[0]), b = value(node.inputs[1]), y = value(node.output);
  const bool product = node.op == Op::mul;
  const Act act = static_cast<Act>(node.attrs[0]);
  add(op_name(node.op), {a, b}, y, [=, &glue = glue_](const Frame& f, Part part) {
    glue.binary({f.map(a), f.map(b), f.map(y), product, act}, part);
  });
}

void Builder::affine(const Node& node) {
  const Slot x = value(node.inputs[0]), y = value(node.output);
  const bool scaled = node.op == Op::affine;
  const float* scale = scaled ? padded(node.weights[0].data, node.weights[0].count) : nullptr;
  const float* shift = scaled ? padded(node.weights[1].data, node.weights[1].count) : nullptr;
  const Act act = static_cast<Act>(node.attrs[0]);
  add(op_name(node.op), {x}, y, [=, &glue = glue_](const Frame& f, Part part) {
    glue.affine({f.map(x), f.map(y), scale, shift, act}, part);
  });
}

void Builder::concat(const Node& node) {
  const Slot y = value(node.output);
  std::vector<Slot> inputs;
  for (const int input : node.inputs) inputs.push_back(value(input));
  Step& step = add("concat", inputs, y, [=, &glue = glue_](const Frame& f, Part part) {
    int first = 0;
    for (const Slot& x : inputs) {
      glue.place({f.map(x), f.map(y), first}, part);
      first += x.channels;
    }
  });
  step.by_blocks = false;
}

void Builder::channel_pool(const Node& node) {
  const Slot x = value(node.inputs[0]), y = value(node.output);
  const int order = node.attrs[0];
  // Two planes, then the planes as channels of a map.
  const Slot pair = planes({x.channels, x.height, x.width}, 2, 1, 1);
  Step& step = add("channel_pool", {x, pair}, y, [=, &glue = glue_](const Frame& f, Part part) {
    PixelPools p{};
    p.x = f.map(x), p.row = pair.row;
    float *first = f.buffers[pair.buffer], *second = first + pair.block;
    p.max = order == 0 || order == 3 ? first : order == 1 ? second : nullptr;
    p.mean = order == 0 ? second : order == 3 ? nullptr : first;
    glue.pixel_pools(p, part);
    for (int c = 0; c < y.channels; ++c)
      for (int row = part.y0; row < part.y1; ++row) {
        const float* from = first + c * pair.block + row * pair.row;
        float* to = f.buffers[y.buffer] + y.origin + row * y.row + c;
        for (int i = 0; i < y.width; ++i, to += y.pixel) {
          *to = from[i];
          if (c == 0) std::fill(to + 1, to + y.pixel, 0.f);
        }
      }
  });
  step.by_blocks = false;
}

}  // namespace ff::engine
