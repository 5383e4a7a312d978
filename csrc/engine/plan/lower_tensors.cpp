// SPDX-License-Identifier: Apache-2.0
// Operations on maps as tensors as steps.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "engine/plan/lower.h"

namespace ff::engine {
namespace {

// Of a gather's output: their places are computed one by one when the plan is made.
constexpr idx kMostGathered = idx{1} << 26;

[[noreturn]] void fail(const char* op, const std::string& text) {
  throw std::invalid_argument("engine file: " + (op + (": " + text)));
}

// The i-th of weights that are whole numbers of -1 to `most`.
int whole_number(const char* op, const Weights& w, idx i, idx most) {
  const float v = w.data[i];
  if (!(v >= -1.f && v <= static_cast<float>(most)) || v != static_cast<float>(static_cast<int>(v)))
    fail(op, "index: expected whole numbers of -1 to " + std::to_string(most) + ", got " + std::to_string(v));
  return static_cast<int>(v);
}

int* ints(Lowering& l, size_t count) { return reinterpret_cast<int*>(l.packed(count)); }

idx elements_of(const Slot& s) { return idx{s.channels} * s.height * s.width; }

// For each element of a gather's output, in (C, H, W) order, the number of x's element; -1: none.
std::vector<int> sources(const graph::Gather& op, const Slot& x, idx count) {
  if (count > kMostGathered)
    fail(op.kName, "expected at most " + std::to_string(kMostGathered) + " elements, got " + std::to_string(count));
  const idx limit = elements_of(x);
  std::vector<int> all(1, 0);
  idx first = 0;
  for (int d = 0; d < graph::kGatherDims; ++d) {
    std::vector<idx> part;
    for (int i = 0; i < op.n[d]; ++i) {
      const int index = whole_number(op.kName, op.index, first + i, (1 << 24) - 1);
      part.push_back(index < 0 ? -1 : idx{index} * op.stride[d]);
    }
    first += op.n[d];
    std::vector<int> next;
    next.reserve(all.size() * part.size());
    for (const int before : all)
      for (const idx p : part) {
        const idx at = before < 0 || p < 0 ? -1 : before + p;
        if (at >= limit)
          fail(op.kName, "index: expected places below " + std::to_string(limit) + ", got " + std::to_string(at));
        next.push_back(static_cast<int>(at));
      }
    all = std::move(next);
  }
  return all;
}

// A gather that takes whole pixels, and of each the same channels.
struct ByPixels {
  std::vector<int> channels, rows, columns;

  // Whether it is one.
  bool fits(const std::vector<int>& from, const Slot& x, const Slot& y) {
    channels.assign(static_cast<size_t>(y.channels), -1), rows.assign(static_cast<size_t>(y.height), -1);
    columns.assign(static_cast<size_t>(y.width), -1);
    each(from, y, [&](int c, int i, int j, int at) {
      if (at < 0) return true;
      channels[static_cast<size_t>(c)] = at / (x.height * x.width);
      rows[static_cast<size_t>(i)] = at / x.width % x.height, columns[static_cast<size_t>(j)] = at % x.width;
      return true;
    });
    return each(from, y, [&](int c, int i, int j, int at) {
      const int ch = channels[static_cast<size_t>(c)], row = rows[static_cast<size_t>(i)],
                column = columns[static_cast<size_t>(j)];
      return at == (ch < 0 || row < 0 || column < 0 ? -1 : (ch * x.height + row) * x.width + column);
    });
  }

  template <class Body>
  static bool each(const std::vector<int>& from, const Slot& y, const Body& body) {
    size_t i = 0;
    for (int c = 0; c < y.channels; ++c)
      for (int row = 0; row < y.height; ++row)
        for (int column = 0; column < y.width; ++column)
          if (!body(c, row, column, from[i++])) return false;
    return true;
  }
};

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
  ByPixels::each(from, y, [&](int c, int i, int j, int at) {
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
  const std::vector<int> from = sources(op, x, elements_of(y));
  ByPixels by;
  by.fits(from, x, y) ? gather_pixels(l, op, by, x, y) : gather_any(l, op, from, x, y);
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

}  // namespace ff::engine
