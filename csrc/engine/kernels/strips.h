// SPDX-License-Identifier: Apache-2.0
// Convolutions one after another by strips of rows: depthwise → pointwise, expand → depthwise → project, and gates on
// the way in. What lies between them is written to scratch of about the size of half an L2 cache and read from there.
#pragma once
#include "engine/kernels/low_conv.h"
#include "engine/kernels/low_depthwise.h"

namespace ff {
namespace FF_ISA {
namespace {

using engine::Strips;

FF_INLINE const Conv& first_of(const Strips& s) {
  return s.expand ? *s.expand : s.depthwise ? *s.depthwise : *s.project;
}

FF_INLINE bool same(Type a, const Quant& p, Type b, const Quant& q) {
  return a == b && (a != Type::uint8 || (p.scale == q.scale && p.zero == q.zero));
}

// Whether the input must be rewritten on its way to the first convolution: depthwise can read any type itself.
FF_INLINE bool rewritten(const Strips& s) {
  const Conv& first = first_of(s);
  return any(s.gates) || !same(s.x_type, s.x_quant, first.x_type, first.x_quant);
}

FF_INLINE void rewrite(const Strips& s, const Map& x, const Map& y, Part part) {
  const Conv& first = first_of(s);
  gate_as(x, s.x_type, s.x_quant, s.gates, y, first.x_type, first.x_quant, part);
}

// Rows of a map in scratch: the map's rows [first, first + rows), with `left` and `right` columns of border.
struct StripMap {
  char* at;
  Type type;
  Quant quant;
  idx rows, left, row, block, bytes;

  // The map, placed so that its row `first` is the strip's.
  FF_CLASS_INLINE Map map(const Map& shape, idx first) const {
    return {reinterpret_cast<float*>(at + (left * L - first * row) * size_of(type)),
            shape.channels,
            shape.height,
            shape.width,
            row,
            block};
  }
};

FF_INLINE StripMap strip_map(const Map& shape, Type type, const Quant& quant, idx rows, idx left, idx right) {
  const idx row = (left + shape.width + right) * L, block = rows * row,
            bytes = blocks_of(shape.channels) * block * size_of(type);
  return {nullptr, type, quant, rows, left, row, block, ceil_div(bytes, 64) * 64};
}

// What is between the convolutions: gated x (where expand or project reads it), what depthwise reads, what it writes.
struct StripPlan {
  StripMap gated, expanded, deep;
  idx rows;  // of the output at once
};

FF_INLINE StripPlan strip_plan_of(const Strips& s, idx rows) {
  StripPlan p = {};
  p.rows = rows;
  const Conv& first = first_of(s);
  const bool fresh = rewritten(s);
  if (s.depthwise) {
    const Window& w = s.depthwise->window;
    const idx in_rows = (rows - 1) * w.sh + w.kh;
    const idx right = max_idx(0, (s.depthwise->y.width - 1) * w.sw - w.left + w.kw - s.depthwise->x.width);
    if (s.expand || fresh)
      p.expanded = strip_map(s.depthwise->x, s.depthwise->x_type, s.depthwise->x_quant, in_rows, w.left, right);
    if (s.project) p.deep = strip_map(s.depthwise->y, s.depthwise->y_type, {}, rows, 0, 0);
    if (s.expand && fresh) p.gated = strip_map(s.expand->x, first.x_type, {}, in_rows, 0, 0);
  } else {
    p.gated = strip_map(s.project->x, first.x_type, {}, rows, 0, 0);
  }
  return p;
}

FF_INLINE const Conv& last_of(const Strips& s) { return s.project ? *s.project : *s.depthwise; }

FF_INLINE StripPlan strip_plan(const Strips& s) {
  constexpr idx kBytes = 384 * 1024;
  idx rows = 1;
  for (; rows < last_of(s).y.height; ++rows) {
    const StripPlan next = strip_plan_of(s, rows + 1);
    if (next.gated.bytes + next.expanded.bytes + next.deep.bytes > kBytes) break;
  }
  StripPlan p = strip_plan_of(s, rows);
  p.gated.at = reinterpret_cast<char*>(s.scratch);
  p.expanded.at = offset(p.gated.at, p.gated.bytes), p.deep.at = offset(p.expanded.at, p.expanded.bytes);
  return p;
}

static size_t strips_scratch(const Strips& s) {
  const StripPlan p = strip_plan(s);
  return static_cast<size_t>(p.gated.bytes + p.expanded.bytes + p.deep.bytes) / sizeof(float);
}

// Pixels [0, count) from element `at` of a strip on, as padding reads them: zeros, or a byte's zero.
FF_NOINLINE void clear(const StripMap& m, idx at, idx count) {
  const int value = m.type == Type::uint8 ? static_cast<int>(m.quant.zero) : 0;
  __builtin_memset(m.at + at * size_of(m.type), value, static_cast<size_t>(count * L * size_of(m.type)));
}

FF_INLINE void clear_border(const StripMap& m, idx width, idx b0, idx b1) {
  for (idx line = b0 * m.rows; line < b1 * m.rows; ++line) {
    clear(m, line * m.row, m.left);
    clear(m, line * m.row + (m.left + width) * L, m.row / L - m.left - width);
  }
}

// Moves rows [from, from + rows) of each block to its first rows.
FF_INLINE void keep_rows(const StripMap& m, idx from, idx rows, idx b0, idx b1) {
  const idx size = size_of(m.type);
  for (idx b = b0; from && b < b1; ++b) {
    char* to = m.at + b * m.block * size;
    __builtin_memmove(to, to + from * m.row * size, static_cast<size_t>(rows * m.row * size));
  }
}

// Rows [first, end) of what depthwise reads, of blocks [b0, b1), in a strip that begins at row `base`: padding outside
// the image.
FF_INLINE void fill_expanded(const Strips& s, const Map& input, const Map& expanded, const StripMap& strip, idx base,
                             idx first, idx end, int b0, int b1) {
  const int y0 = static_cast<int>(max_idx(first, 0)), y1 = static_cast<int>(min_idx(end, expanded.height));
  for (idx b = b0; b < b1; ++b)
    for (idx y = first; y < end; ++y)
      if (y < 0 || y >= expanded.height) clear(strip, b * strip.block + (y - base) * strip.row, strip.row / L);
  if (y0 >= y1) return;
  if (!s.expand) return rewrite(s, input, expanded, {y0, y1, b0, b1});
  Conv expand = *s.expand;
  expand.x = input, expand.y = expanded, expand.epilogue.pools = {};
  conv(expand, {y0, y1, b0, b1});
}

// Depthwise of output rows [part.y0, part.y1) after what it reads; rows before `done` of that are there already, in a
// strip that began at row `before`.
FF_INLINE void expanded_strip(const Strips& s, const StripPlan& p, Conv depthwise_conv, Part part, idx before,
                              idx done) {
  const Window& w = depthwise_conv.window;
  const idx first = static_cast<idx>(part.y0) * w.sh - w.top, end = static_cast<idx>(part.y1 - 1) * w.sh - w.top + w.kh;
  const idx fresh = max_idx(first, done);
  const Map expanded = p.expanded.map(depthwise_conv.x, first);
  Map input = s.expand ? s.expand->x : depthwise_conv.x;
  if (s.expand && rewritten(s)) {
    const idx y0 = max_idx(fresh, 0), y1 = min_idx(end, input.height);
    const Map gated = p.gated.map(input, y0);
    if (y0 < y1)
      rewrite(s, input, gated,
              {static_cast<int>(y0), static_cast<int>(y1), 0, static_cast<int>(blocks_of(input.channels))});
    input = gated;
  }
  const int panel = s.expand ? s.expand->panel : 1;
  depthwise_conv.x = expanded;
  for (int b = part.b0; b < part.b1; b += panel) {
    const int b1 = static_cast<int>(min_idx(b + panel, part.b1));
    if (fresh > first) keep_rows(p.expanded, first - before, fresh - first, b, b1);
    fill_expanded(s, input, expanded, p.expanded, first, fresh, end, b, b1);
    depthwise(depthwise_conv, {part.y0, part.y1, b, b1});
  }
}

static void strips(const Strips& s, Part part) {
  const StripPlan p = strip_plan(s);
  const bool expanded = s.depthwise && (s.expand || rewritten(s));
  Part deep = part;
  if (s.depthwise && s.project) deep.b0 = 0, deep.b1 = static_cast<int>(blocks_of(s.depthwise->y.channels));
  if (expanded) clear_border(p.expanded, s.depthwise->x.width, deep.b0, deep.b1);
  idx before = 0, done = -(1 << 30);
  for (int y0 = part.y0; y0 < part.y1; y0 += static_cast<int>(p.rows)) {
    const int y1 = static_cast<int>(min_idx(part.y1, y0 + p.rows));
    deep.y0 = y0, deep.y1 = y1;
    Map input = s.depthwise ? s.depthwise->y : s.project->x;
    if (s.depthwise) {
      const Window& w = s.depthwise->window;
      Conv middle = *s.depthwise;
      if (s.project) middle.y = input = p.deep.map(middle.y, y0), middle.epilogue.pools = {};
      if (expanded)
        expanded_strip(s, p, middle, deep, before, done);
      else
        depthwise(middle, deep);
      before = static_cast<idx>(y0) * w.sh - w.top, done = static_cast<idx>(y1 - 1) * w.sh - w.top + w.kh;
    } else if (rewritten(s)) {
      const Map gated = p.gated.map(input, y0);
      rewrite(s, input, gated, {y0, y1, 0, static_cast<int>(blocks_of(input.channels))});
      input = gated;
    }
    if (!s.project) continue;
    Conv project = *s.project;
    project.x = input;
    conv(project, {y0, y1, part.b0, part.b1});
  }
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
