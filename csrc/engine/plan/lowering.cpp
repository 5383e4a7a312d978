// SPDX-License-Identifier: Apache-2.0
#include "engine/plan/lowering.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace ff::engine {
namespace {

constexpr size_t kLine = 16;                     // floats of a cache line
constexpr size_t kMostFloats = size_t{1} << 29;  // of a buffer

}  // namespace

Lowering::Lowering(const Graph& graph, std::vector<Type> types, const Target& target, const Glue& glue,
                   const tensors::Table& tensors, bool image_steps, Program& program)
    : graph_(graph), types_(std::move(types)), target_(target), glue_(glue), tensors_(tensors),
      image_steps_(image_steps), program_(program), values_(graph.values.size(), kNoSlot), converted_(values_),
      before_(graph.values.size(), Shape{0, 0, 0}), after_(before_), gates_(graph.values.size()),
      makers_(graph.values.size(), -1), homes_(graph.values.size()) {
  const auto borders = [&](const graph::Conv& conv, int input) {
    Shape &before = before_[static_cast<size_t>(input)], &after = after_[static_cast<size_t>(input)];
    const graph::Sliding& s = conv.sliding;
    before.height = std::max(before.height, s.window.top), before.width = std::max(before.width, s.window.left);
    after.height = std::max(after.height, s.bottom), after.width = std::max(after.width, s.right);
  };
  for (const Node& node : graph.nodes) {
    if (const auto* conv = std::get_if<graph::Conv>(&node.op)) borders(*conv, node.inputs[0]);
    if (const auto* mean = std::get_if<graph::MeanConv>(&node.op)) borders(mean->conv.op, node.inputs[0]);
    if (const auto* strips = std::get_if<graph::Strips>(&node.op))
      if (strips->depthwise && !strips->expand) borders(strips->depthwise->op, node.inputs[0]);
  }
  if (image_steps) take_homes();
}

// What a concatenation joins is written in place, and a part of a map's channels read in place, where these begin with
// a block. Whatever fills up the last block of such a value are its neighbour's channels.
void Lowering::take_homes() {
  const int lanes = kernels().lanes;
  const auto move_in = [&](int value, int into, int channel, bool is_part) {
    Home& home = homes_[static_cast<size_t>(value)];
    if (home.value >= 0 || channel % lanes || reads_image(value) || reads_image(into) ||
        type_of(value) != Type::float32 || type_of(into) != Type::float32)
      return;
    home = {into, channel / lanes, is_part};
  };
  for (const Node& node : graph_.nodes) {
    if (std::holds_alternative<graph::Concat>(node.op)) {
      int first = 0;
      for (const int input : node.inputs) move_in(input, node.output, first, false), first += shape(input).channels;
    } else if (const auto* channels = std::get_if<graph::Channels>(&node.op)) {
      const int first = channels->from[0].channel;
      bool whole = node.inputs.size() == 1;
      for (size_t c = 0; c < channels->from.size(); ++c)
        whole &= channels->from[c].channel == first + static_cast<int>(c);
      if (whole) move_in(node.output, node.inputs[0], first, true);
    }
  }
  std::vector<size_t> path;
  for (size_t id = 0; id < homes_.size(); ++id) {
    size_t at = id;
    for (; homes_[at].value >= 0; at = static_cast<size_t>(homes_[at].value)) path.push_back(at);
    int block = 0;
    for (; !path.empty(); path.pop_back()) {
      Home& home = homes_[path.back()];
      block += home.block, home.value = static_cast<int>(at), home.block = block;
    }
    if (at == id) continue;
    Shape &before = before_[at], &after = after_[at];
    before.height = std::max(before.height, before_[id].height),
    before.width = std::max(before.width, before_[id].width);
    after.height = std::max(after.height, after_[id].height), after.width = std::max(after.width, after_[id].width);
  }
}

int Lowering::new_buffer(size_t floats) {
  if (floats > kMostFloats)
    throw std::invalid_argument("engine: a value with its border needs " + std::to_string(floats) +
                                " floats, the most is " + std::to_string(kMostFloats));
  buffers_.push_back({(floats + kLine - 1) / kLine * kLine, -1, -1});
  return static_cast<int>(buffers_.size()) - 1;
}

Slot Lowering::new_map(const Shape& shape, const Shape& before, const Shape& after, Type type, Quant quant) {
  const int lanes = kernels().lanes;
  Slot s{-1,           lanes,        0,           shape.channels, shape.height, shape.width, 0, 0, before.height,
         before.width, after.height, after.width, type,           quant};
  s.row = ptrdiff_t{lanes} * (s.left + shape.width + s.right);
  s.block = s.row * (s.top + shape.height + s.bottom);
  // Blocks a multiple of 4 KiB apart would share the lines of the first-level cache.
  const auto line = static_cast<ptrdiff_t>(64 / size_of(type));
  if (shape.channels > lanes && s.block % (64 * line) == 0) s.block += 5 * line;
  s.origin = s.top * s.row + ptrdiff_t{s.left} * lanes;
  s.buffer =
      new_buffer((static_cast<size_t>(s.block) * static_cast<size_t>(blocks(shape.channels)) * size_of(type) + 3) / 4);
  return s;
}

Slot Lowering::lines(int channels, int length) {
  const int lanes = kernels().lanes;
  Slot s{-1, lanes, 0, channels,      1, length, ptrdiff_t{length} * lanes, ptrdiff_t{length} * lanes, 0,
         0,  0,     0, Type::float32, {}};
  s.buffer = new_buffer(static_cast<size_t>(s.block) * static_cast<size_t>(blocks(channels)));
  return s;
}

Slot Lowering::planes(const Shape& shape, int count, int kh, int kw) {
  const int top = kh / 2, left = kw / 2;
  Slot s{-1, 1, 0, count, shape.height, shape.width, 0, 0, top, left, top, left, Type::float32, {}};
  s.row = shape.width + 2 * left;
  s.block = s.row * (shape.height + 2 * top);
  s.origin = top * s.row + left;
  s.buffer = new_buffer(static_cast<size_t>(s.block) * static_cast<size_t>(count));
  return s;
}

Slot Lowering::value(int id) {
  const auto i = static_cast<size_t>(id);
  if (values_[i].buffer < 0 && homes_[i].value >= 0) {
    Slot s = value(homes_[i].value);
    s.channels = shape(id).channels, s.origin += homes_[i].block * s.block;
    values_[i] = s;
  } else if (values_[i].buffer < 0) {
    values_[i] = new_map(shape(id), before_[i], after_[i], type_of(id), quant_of(id, type_of(id)));
    if (reads_image(id)) import(values_[i]);
  }
  return values_[i];
}

// Every step takes its maps through here: what it reads is then of the type that it expects, whatever types were
// chosen.
Slot Lowering::read(int id, Type type) {
  const Slot slot = value(id);
  if (slot.type == type) return slot;
  const auto i = static_cast<size_t>(id);
  Slot& other = converted_[i];
  if (other.buffer >= 0) return other;
  other = new_map(shape(id), before_[i], after_[i], type, quant_of(id, type));
  const Slot to = other;
  add("convert", slot, to, {}, [=, &k = kernels()](const Frame&, const Map& x, const Map& y, Part part) {
    k.convert(x, slot.type, slot.quant, y, to.type, to.quant, part);
  });
  return to;
}

Quant Lowering::quant_of(int value, Type type) const {
  if (type != Type::uint8) return {};
  const Range& r = graph_.ranges[static_cast<size_t>(value)];
  const float least = std::min(r.least, 0.f), most = std::max(r.most, 0.f);
  const float scale = most > least ? std::max(most / 255.f - least / 255.f, 1e-30f) : 1.f;
  return {scale, 1.f / scale, std::min(255.f, std::max(0.f, std::round(-least / scale)))};
}

void Lowering::want_scratch(size_t floats) { scratch_ = std::max(scratch_, floats); }

const float* Lowering::padded(const Weights& w) {
  float* to = packed(padded_size(w.count));
  std::copy(w.data, w.data + w.count, to);
  return to;
}

Dense Lowering::dense(const Weights& w, const Weights& bias, int inputs, int pixels) {
  const int outputs = static_cast<int>(bias.count);
  const Window window{1, 1, 1, 1, 0, 0};
  const int panel = kernels().conv_panel(inputs, outputs, 1, pixels, window);
  float* to = packed(kernels().conv_packed(inputs, outputs, window));
  kernels().pack_conv(to, w.data, inputs, outputs, window, panel);
  return {to, padded(bias), inputs, outputs, panel};
}

void Lowering::touch(const Slot& slot, int step) {
  if (slot.buffer < 0) return;
  Buffer& b = buffers_[static_cast<size_t>(slot.buffer)];
  b.first = b.first < 0 ? step : std::min(b.first, step);
  b.last = std::max(b.last, step);
}

Step& Lowering::add(const char* name, const Slot& x, const Slot& y, const std::vector<Slot>& others, StepFn run) {
  const int index = static_cast<int>(program_.steps.size());
  program_.steps.emplace_back();
  Step& step = program_.steps.back();
  step.name = name, step.node = origin_, step.x = x, step.y = y, step.run = std::move(run);
  step.height = y.height, step.blocks = (y.channels + y.pixel - 1) / y.pixel, step.by_rows = step.by_blocks = true;
  step.clears_border = y.buffer >= 0 && (y.top || y.left || y.bottom || y.right);
  const auto bytes = [](const Slot& s) {
    return s.buffer < 0 ? 0. : 1. * static_cast<double>(size_of(s.type)) * s.channels * s.height * s.width;
  };
  step.bytes = bytes(x) + bytes(y);
  touch(x, index), touch(y, index);
  if (making_ >= 0 && y.buffer >= 0) {
    const Slot& made = values_[static_cast<size_t>(making_)];
    if (made.buffer == y.buffer && made.origin == y.origin) makers_[static_cast<size_t>(making_)] = index;
  }
  for (const Slot& s : others) touch(s, index), step.bytes += bytes(s);
  return step;
}

void Lowering::pool(int id, const PoolSlots& wanted) {
  const bool columns = wanted.column_sum.buffer >= 0 || wanted.column_max.buffer >= 0;
  const std::vector<Slot> slots{wanted.line_sum, wanted.line_max, wanted.column_sum, wanted.column_max};
  const int maker = makers_[static_cast<size_t>(id)];
  if (maker >= 0) {
    Step& step = program_.steps[static_cast<size_t>(maker)];
    if (step.pools && !step.pools->any()) {
      *step.pools = wanted;
      if (columns) step.by_rows = false;
      for (const Slot& s : slots) touch(s, maker);
      return;
    }
  }
  const Slot x = read(id);
  Step& step = add("pools", x, x, slots, [=, &glue = glue_](const Frame& f, const Map& from, const Map&, Part part) {
    glue.line_pools({from, wanted.of(f)}, part);
  });
  step.clears_border = false;
  step.by_rows = !columns;
}

void Lowering::import(const Slot& y) {
  const Program* p = &program_;
  add("input", kNoSlot, y, {}, [=, &glue = glue_](const Frame& f, const Map&, const Map& to, Part part) {
    const Normalisation& n = f.type == Pixels::uint8 ? p->bytes : p->floats;
    const bool plain = n.scale.empty();
    glue.import({f.image, f.type, plain ? nullptr : n.scale.data(), plain ? nullptr : n.shift.data(), to}, part);
  });
}

void Lowering::finish() {
  origin_ = -1;
  for (size_t i = 0; i < graph_.outputs.size(); ++i) {
    const Slot x = read(graph_.outputs[i]);
    Step& step =
        add("output", x, kNoSlot, {}, [=, &glue = glue_](const Frame& f, const Map& from, const Map&, Part part) {
          glue.export_map({from, f.outputs[i]}, part);
        });
    step.height = x.height, step.blocks = blocks(x.channels);
  }
  program_.layout = lay_out(buffers_, scratch_);
}

}  // namespace ff::engine
