// SPDX-License-Identifier: Apache-2.0
#include "engine/builder.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/huge_pages.h"

namespace ff::engine {
namespace {

constexpr size_t kLine = 16;                      // floats of a cache line
constexpr size_t kMostFloats = size_t{1} << 29;   // of a buffer
constexpr size_t kChunk = size_t{2} << 20;

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

template <class T, size_t N>
const T& of(Isa isa, const T& (*const (&tables)[N])()) {
  return tables[static_cast<size_t>(isa)]();
}

}  // namespace

const Kernels& kernels_of(Isa isa) {
#define FF_TABLE(name) name::engine_kernels,
  static const Kernels& (*const tables[])() = {FF_EACH_ISA(FF_TABLE)};
#undef FF_TABLE
  return of(isa, tables);
}

const Glue& glue_of(Isa isa) {
#define FF_TABLE(name) name::engine_glue,
  static const Glue& (*const tables[])() = {FF_EACH_ISA(FF_TABLE)};
#undef FF_TABLE
  return of(isa, tables);
}

Store::~Store() {
  for (void* block : blocks_) huge_release(block);
}

float* Store::take(size_t floats) {
  const size_t bytes = round_up(floats, kLine) * sizeof(float);
  if (bytes > left_) {
    left_ = std::max(bytes, kChunk);
    blocks_.reserve(blocks_.size() + 1);
    next_ = static_cast<char*>(huge_acquire(left_));
    blocks_.push_back(next_);
  }
  auto* taken = reinterpret_cast<float*>(next_);
  next_ += bytes, left_ -= bytes, bytes_ += bytes;
  std::memset(taken, 0, bytes);
  return taken;
}

Builder::Builder(const Graph& graph, const BuildOptions& options, Program& program)
    : graph_(graph), program_(program), k_(kernels_of(options.isa)), glue_(glue_of(options.isa)), options_(options) {}

int Builder::new_buffer(size_t floats) {
  if (floats > kMostFloats)
    throw std::invalid_argument("engine: a value with its border needs " + std::to_string(floats) + " floats, the most is " +
                                std::to_string(kMostFloats));
  buffers_.push_back({round_up(floats, kLine), -1, -1});
  return static_cast<int>(buffers_.size()) - 1;
}

Slot Builder::new_slot(const Shape& shape, int top, int left, int bottom, int right, Type type, Quant quant) {
  Slot s{-1, k_.lanes, 0, shape.channels, shape.height, shape.width, 0, 0, top, left, bottom, right, type, quant};
  s.row = ptrdiff_t{k_.lanes} * (left + shape.width + right);
  s.block = s.row * (top + shape.height + bottom);
  // Blocks a multiple of 4 KiB apart would share the lines of the first-level cache.
  const auto line = static_cast<ptrdiff_t>(64 / size_of(type));
  if (shape.channels > k_.lanes && s.block % (64 * line) == 0) s.block += 5 * line;
  s.origin = top * s.row + ptrdiff_t{left} * k_.lanes;
  s.buffer = new_buffer((static_cast<size_t>(s.block) * static_cast<size_t>(blocks(shape.channels)) * size_of(type) + 3) / 4);
  return s;
}

Slot Builder::lines(int channels, int length) {
  Slot s{-1, k_.lanes, 0, channels, 1, length, ptrdiff_t{length} * k_.lanes, ptrdiff_t{length} * k_.lanes, 0, 0, 0, 0, Type::float32, {}};
  s.buffer = new_buffer(static_cast<size_t>(s.block) * static_cast<size_t>(blocks(channels)));
  return s;
}

// Planes with a border of half a kernel.
Slot Builder::planes(const Shape& shape, int count, int kh, int kw) {
  const int top = kh / 2, left = kw / 2;
  Slot s{-1, 1, 0, count, shape.height, shape.width, 0, 0, top, left, top, left, Type::float32, {}};
  s.row = shape.width + 2 * left;
  s.block = s.row * (shape.height + 2 * top);
  s.origin = top * s.row + left;
  s.buffer = new_buffer(static_cast<size_t>(s.block) * static_cast<size_t>(count));
  return s;
}

Slot Builder::value(int id) {
  const auto i = static_cast<size_t>(id);
  if (values_[i].buffer < 0) {
    const Shape &before = borders_[0][i], &behind = borders_[1][i];
    const Type type = type_of(id);
    values_[i] = new_slot(graph_.values[i], before.height, before.width, behind.height, behind.width, type, quant_of(id, type));
    if (id == image_) import(values_[i]);
  }
  return values_[i];
}

Slot Builder::output(const Node& node) {
  const Sum& sum = sums_[static_cast<size_t>(node_)];
  return value(sum.output < 0 ? node.output : sum.output);
}

Slot Builder::residual(Type type) {
  const Sum& sum = sums_[static_cast<size_t>(node_)];
  return sum.output < 0 ? kNoSlot : read(sum.other, type);
}

void Builder::find_borders() {
  for (auto& side : borders_) side.assign(graph_.values.size(), Shape{0, 0, 0});
  for (const Node& node : graph_.nodes) {
    if (node.op != Op::conv) continue;
    const auto input = static_cast<size_t>(node.inputs[0]);
    for (size_t side = 0; side < 2; ++side) {
      Shape& border = borders_[side][input];
      border.height = std::max(border.height, node.attrs[4 + 2 * side]);
      border.width = std::max(border.width, node.attrs[5 + 2 * side]);
    }
  }
}

const float* Builder::padded(const float* v, idx count) {
  float* to = program_.weights.take(static_cast<size_t>(blocks(static_cast<int>(count)) * k_.lanes));
  std::copy(v, v + count, to);
  return to;
}

Builder::Dense Builder::dense(const Weights& w, const Weights& bias, int inputs, int pixels) {
  const int outputs = static_cast<int>(bias.count);
  const Window window{1, 1, 1, 1, 0, 0};
  const int panel = k_.conv_panel(inputs, outputs, 1, pixels, window);
  float* packed = program_.weights.take(k_.conv_packed(inputs, outputs, window));
  k_.pack_conv(packed, w.data, inputs, outputs, window, panel);
  return {packed, padded(bias.data, bias.count), inputs, outputs, panel};
}

void Builder::touch(const Slot& slot, int step) {
  if (slot.buffer < 0) return;
  Buffer& b = buffers_[static_cast<size_t>(slot.buffer)];
  b.first = b.first < 0 ? step : std::min(b.first, step);
  b.last = std::max(b.last, step);
}

Step& Builder::add(const char* name, const Slot& x, const Slot& y, const std::vector<Slot>& others, StepFn run) {
  const int index = static_cast<int>(program_.steps.size());
  program_.steps.emplace_back();
  Step& step = program_.steps.back();
  step.name = name, step.node = node_, step.x = x, step.y = y, step.run = std::move(run);
  step.height = y.height, step.blocks = (y.channels + y.pixel - 1) / y.pixel, step.by_rows = step.by_blocks = true;
  step.clears_border = y.buffer >= 0 && (y.top || y.left || y.bottom || y.right);
  const auto bytes = [](const Slot& s) { return s.buffer < 0 ? 0. : 1. * static_cast<double>(size_of(s.type)) * s.channels * s.height * s.width; };
  step.bytes = bytes(x) + bytes(y);
  touch(x, index), touch(y, index);
  for (const Slot& s : others) touch(s, index), step.bytes += bytes(s);
  return step;
}

void Builder::run() {
  values_.assign(graph_.values.size(), kNoSlot), converted_ = values_;
  done_.assign(graph_.nodes.size(), false);
  find_borders();
  count_uses();
  find_image();
  find_sums();
  find_planes();
  find_means();
  find_chains();
  find_types();
  for (size_t i = 0; i < graph_.nodes.size(); ++i) {
    node_ = static_cast<int>(i);
    if (!planar_.empty() && node_ == planar_.back())
      planar();
    else if (!done_[i])
      lower(graph_.nodes[i]);
  }
  node_ = -1;
  for (size_t i = 0; i < graph_.outputs.size(); ++i) {
    const Slot x = read(graph_.outputs[i], Type::float32);
    Step& step = add("output", x, kNoSlot, {}, [=, &glue = glue_](const Frame& f, const Map& from, const Map&, Part part) {
      glue.export_({from, f.outputs[i]}, part);
    });
    step.height = x.height, step.blocks = blocks(x.channels);
  }
  program_.layout = lay_out(buffers_, program_.scratch);
  if (options_.apart) program_.values = values_;
}

std::unique_ptr<Program> build(const Graph& graph, const BuildOptions& options, const Normalisation& bytes) {
  auto program = std::make_unique<Program>();
  program->bytes = bytes;
  Builder(graph, options, *program).run();
  return program;
}

}  // namespace ff::engine
