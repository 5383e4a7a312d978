// SPDX-License-Identifier: Apache-2.0
// Operations on maps as tensors as steps.
#include <algorithm>

#include "engine/graph/gathers.h"
#include "engine/plan/lower.h"

namespace ff::engine {
namespace {

int* ints(Lowering& l, size_t count) { return reinterpret_cast<int*>(l.packed(count)); }

idx elements_of(const Slot& s) { return idx{s.channels} * s.height * s.width; }

// What a pixel's lanes are taken from.
void pack_channels(const std::vector<int>& from, const Slot& x, int lanes, int* whole, int* places) {
  const auto count = static_cast<int>(from.size());
  for (int b = 0; b * lanes < count; ++b) {
    const int first = from[static_cast<size_t>(b * lanes)];
    bool same = first >= 0 && first % lanes == 0;
    for (int l = 0; l < lanes; ++l) {
      const int c = b * lanes + l, source = c < count ? from[static_cast<size_t>(c)] : std::max(first, 0);
      if (c < count) same = same && source == first + l;
      places[c] = source < 0 ? -1 : static_cast<int>(source / lanes * x.block) + source % lanes;
    }
    whole[b] = same ? static_cast<int>(first / lanes * x.block) : -1;
  }
}

void gather_pixels(Lowering& l, const graph::Gather& op, const ByPixels& by, const Slot& x, const Slot& y) {
  const int lanes = l.kernels().lanes, blocks = l.blocks(y.channels);
  tensors::GatherPixels p{};
  const auto copied = [&](const std::vector<int>& from) {
    return std::copy(from.begin(), from.end(), ints(l, from.size())) - from.size();
  };
  p.rows = copied(by.rows), p.columns = copied(by.columns), p.fill = *op.fill.data;
  int *whole = ints(l, static_cast<size_t>(blocks)), *places = ints(l, static_cast<size_t>(blocks * lanes));
  pack_channels(by.channels, x, lanes, whole, places);
  p.whole = whole, p.channels = places;
  l.add(op.kName, x, y, {}, [=, &t = l.tensors()](const Frame&, const Map& from, const Map& to, Part part) {
    tensors::GatherPixels call = p;
    call.x = from, call.y = to;
    t.gather_pixels(call, part);
  });
}

void gather_any(Lowering& l, const graph::Gather& op, const std::vector<int>& from, const Slot& x, const Slot& y) {
  const int lanes = l.kernels().lanes, blocks = l.blocks(y.channels);
  int* places = ints(l, static_cast<size_t>(blocks * lanes) * static_cast<size_t>(y.height * y.width));
  const auto place = [&](int at) {
    if (at < 0) return -1;
    const int c = at / (x.height * x.width);
    return static_cast<int>(c / lanes * x.block + at / x.width % x.height * x.row + at % x.width * lanes) + c % lanes;
  };
  const Shape shape{y.channels, y.height, y.width};
  ByPixels::each(from, shape, [&](int c, int i, int j, int at) {
    places[((c / lanes * y.height + i) * y.width + j) * lanes + c % lanes] = place(at);
    return true;
  });
  const float fill = *op.fill.data;
  l.add(op.kName, x, y, {}, [=, &t = l.tensors()](const Frame&, const Map& source, const Map& to, Part part) {
    t.gather_any({source, to, places, fill}, part);
  });
}

// Weights of one value, or of one a channel.
const float* each_channel(Lowering& l, const Weights& w, int channels) {
  float* to = l.packed(l.padded_size(channels));
  for (int c = 0; c < channels; ++c) to[c] = w.data[w.count == 1 ? 0 : c];
  return to;
}

}  // namespace

void lower(Lowering& l, const Node& node, const graph::Gather& op) {
  const Slot x = l.input(node), y = l.output(node);
  const Shape &before = l.shape(node.inputs[0]), &after = l.shape(node.output);
  const std::vector<int> from = sources(op, before, after);
  ByPixels by;
  by.fits(from, before, after) ? gather_pixels(l, op, by, x, y) : gather_any(l, op, from, x, y);
}

void take_channels(Lowering& l, const char* name, const Slot& y, std::vector<Slot> inputs,
                   const std::vector<graph::Channels::Source>& from) {
  const auto lanes = static_cast<size_t>(l.kernels().lanes);
  const auto self = static_cast<int>(inputs.size());
  inputs.push_back(y);
  std::vector<int> first{0}, input, block, taken;
  for (size_t c0 = 0; c0 < from.size(); c0 += lanes) {
    const auto begin = input.size();
    const auto part = [&](int number, int channel) {
      const int b = channel / static_cast<int>(lanes);
      size_t i = begin;
      while (i < input.size() && (input[i] != number || block[i] != b)) ++i;
      if (i == input.size()) input.push_back(number), block.push_back(b), taken.resize(taken.size() + lanes, -1);
      return taken.data() + i * lanes;
    };
    bool there = true;
    for (size_t c = c0; c < std::min(c0 + lanes, from.size()); ++c) there &= from[c].input == kThere;
    for (size_t c = c0; !there && c < std::min(c0 + lanes, from.size()); ++c) {
      const int number = from[c].input == kThere ? self : from[c].input;
      if (number >= 0) part(number, from[c].channel)[c - c0] = from[c].channel % static_cast<int>(lanes);
    }
    first.push_back(static_cast<int>(input.size()));
  }
  const auto kept = [&](const std::vector<int>& v) {
    return std::copy(v.begin(), v.end(), ints(l, v.size())) - v.size();
  };
  const tensors::Channels p{nullptr, {}, kept(first), kept(input), kept(block), kept(taken)};
  const auto run = [=, &t = l.tensors()](const Frame& f, const Map&, const Map& to, Part part) {
    Map maps[graph::Channels::kMostInputs + 1];
    std::transform(inputs.begin(), inputs.end(), maps, [&](const Slot& x) { return f.map(x); });
    tensors::Channels call = p;
    call.x = maps, call.y = to;
    t.take_channels(call, part);
  };
  // By rows alone: an input may be a part of y, whose last block this step completes, writing what is there again.
  l.add(name, kNoSlot, y, inputs, run).by_blocks = false;
}

void lower(Lowering& l, const Node& node, const graph::Channels& op) {
  if (l.is_part(node.output)) return;
  std::vector<Slot> inputs;
  for (size_t i = 0; i < node.inputs.size(); ++i) inputs.push_back(l.input(node, i));
  take_channels(l, "channels", l.output(node), inputs, op.from);
}

void lower(Lowering& l, const Node& node, const graph::Constant& op) {
  const Slot y = l.output(node);
  const int lanes = l.kernels().lanes;
  const Map m{
      nullptr, y.channels, y.height, y.width, ptrdiff_t{y.width} * lanes, ptrdiff_t{y.width} * y.height * lanes};
  float* values = l.packed(static_cast<size_t>(m.block) * static_cast<size_t>(l.blocks(y.channels)));
  idx i = 0;
  for (int c = 0; c < y.channels; ++c)
    for (int pixel = 0; pixel < y.height * y.width; ++pixel)
      values[c / lanes * m.block + pixel * lanes + c % lanes] = op.values.data[i++];
  l.add(op.kName, kNoSlot, y, {}, [=, &t = l.tensors()](const Frame&, const Map&, const Map& to, Part part) {
    Map from = m;
    from.data = values;
    t.put({from, to, 0, 0}, part);
  });
}

void lower(Lowering& l, const Node& node, const graph::Join& op) {
  std::vector<Slot> inputs;
  for (size_t i = 0; i < node.inputs.size(); ++i) inputs.push_back(l.input(node, i));
  const bool rows = op.axis == 1;
  l.add(op.kName, kNoSlot, l.output(node), inputs,
        [=, &t = l.tensors()](const Frame& f, const Map&, const Map& to, Part part) {
          int first = 0;
          for (const Slot& x : inputs) {
            t.put({f.map(x), to, rows ? first : 0, rows ? 0 : first}, part);
            first += rows ? x.height : x.width;
          }
        });
}

void lower(Lowering& l, const Node& node, const graph::Unary& op) {
  const Slot x = l.input(node), y = l.output(node);
  const float *a = each_channel(l, op.a, x.channels), *b = each_channel(l, op.b, x.channels);
  const UnaryOp function = op.function;
  l.add(op.kName, x, y, {}, [=, &t = l.tensors()](const Frame&, const Map& from, const Map& to, Part part) {
    t.unary({from, to, function, a, b}, part);
  });
}

void lower(Lowering& l, const Node& node, const graph::Binary& op) {
  const Slot a = l.input(node), b = l.input(node, 1), y = l.output(node);
  const BinaryOp function = op.function;
  l.add(op.kName, a, y, {b}, [=, &t = l.tensors()](const Frame& f, const Map& from, const Map& to, Part part) {
    t.binary_of({from, f.map(b), to, function}, part);
  });
}

void lower(Lowering& l, const Node& node, const graph::Select& op) {
  const Slot condition = l.input(node), a = l.input(node, 1), b = l.input(node, 2), y = l.output(node);
  l.add(op.kName, condition, y, {a, b},
        [=, &t = l.tensors()](const Frame& f, const Map& from, const Map& to, Part part) {
          t.select_of({from, f.map(a), f.map(b), to}, part);
        });
}

void lower(Lowering& l, const Node& node, const graph::Reduce& op) {
  const Slot x = l.input(node), y = l.output(node);
  const graph::Axes axes = op.axes;
  const ReduceOp function = op.function;
  const float correction = *op.correction.data;
  l.add(op.kName, x, y, {}, [=, &t = l.tensors()](const Frame&, const Map& from, const Map& to, Part part) {
    t.reduce_axes({from, to, function, axes.channels, axes.height, axes.width, correction}, part);
  });
}

void lower(Lowering& l, const Node& node, const graph::Softmax& op) {
  const Slot x = l.input(node), y = l.output(node);
  const graph::Axes axes = op.axes;
  const bool log = op.log;
  Step& step =
      l.add(op.kName, x, y, {}, [=, &t = l.tensors()](const Frame&, const Map& from, const Map& to, Part part) {
        t.softmax_axes({from, to, log, axes.channels, axes.height, axes.width}, part);
      });
  step.by_rows = !axes.height, step.by_blocks = !axes.channels;
}

void lower(Lowering& l, const Node& node, const graph::Resample& op) {
  const Slot x = l.input(node), y = l.output(node);
  const auto indices = [&](const Weights& w, int length) {
    int* to = ints(l, static_cast<size_t>(w.count));
    for (idx i = 0; i < w.count; ++i) to[i] = whole_number(op.kName, w, i, length - 1);
    return to;
  };
  const auto floats = [&](const Weights& w) {
    float* to = l.packed(static_cast<size_t>(w.count));
    std::copy_n(w.data, w.count, to);
    return to;
  };
  tensors::Resample r{};
  r.maximum = op.maximum, r.row_taps = op.row_taps, r.column_taps = op.column_taps;
  r.rows = indices(op.rows, x.height), r.columns = indices(op.columns, x.width);
  r.rows_weight = floats(op.rows_weight), r.columns_weight = floats(op.columns_weight);
  l.add(op.kName, x, y, {}, [=, &t = l.tensors()](const Frame&, const Map& from, const Map& to, Part part) {
    tensors::Resample call = r;
    call.x = from, call.y = to;
    t.resample(call, part);
  });
}

void lower(Lowering& l, const Node& node, const graph::Normalise& op) {
  const Slot x = l.input(node), y = l.output(node);
  const float *scale = l.padded(op.scale), *shift = l.padded(op.shift), eps = *op.eps.data;
  if (op.by_pixel) {
    // A part is rows: a pixel's statistics are those of all its channels, and whoever has them writes them all.
    Step& step =
        l.add(op.kName, x, y, {}, [=, &t = l.tensors()](const Frame&, const Map& from, const Map& to, Part part) {
          t.pixel_norm({from, to, eps, scale, shift}, part);
        });
    step.by_blocks = false;
    return;
  }
  const Slot stats = l.lines(x.channels, 2);
  const int groups = op.groups;
  serial(l.add("statistics", x, stats, {}, [=, &t = l.tensors()](const Frame& f, const Map& from, const Map&, Part) {
    t.group_stats({from, groups, eps, scale, shift, f.buffer(stats)});
  }));
  const auto padded = static_cast<ptrdiff_t>(l.padded_size(x.channels));
  l.add(op.kName, x, y, {stats}, [=, &glue = l.glue()](const Frame& f, const Map& from, const Map& to, Part part) {
    const float* factors = f.buffer(stats);
    glue.affine({from, to, factors, factors + padded, Act::none}, part);
  });
}

void lower(Lowering& l, const Node& node, const graph::MatMul& op) {
  const Slot a = l.input(node), b = l.input(node, 1), y = l.output(node);
  Step& step =
      l.add(op.kName, a, y, {b}, [=, &t = l.tensors()](const Frame& f, const Map& from, const Map& to, Part part) {
        t.matmul({from, f.map(b), to}, part);
      });
  step.macs = static_cast<double>(elements_of(a)) * y.channels;
}

void lower(Lowering& l, const Node& node, const graph::Sample& op) {
  const Slot x = l.input(node), grid = l.input(node, 1), y = l.output(node);
  l.add(op.kName, x, y, {grid}, [=, &t = l.tensors()](const Frame& f, const Map& from, const Map& to, Part part) {
    t.sample({from, f.map(grid), to, op.sampling, op.outside, op.corners}, part);
  });
}

}  // namespace ff::engine
