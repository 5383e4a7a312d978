// SPDX-License-Identifier: Apache-2.0
// Convolutions one after another by strips of rows: depthwise → pointwise, expand → depthwise → project, and gates on the
// way in. What lies between them is written to scratch of about the size of half an L2 cache and read from there.
#pragma once
#include "engine/kernels/depthwise.h"

namespace ff {
namespace FF_ISA {
namespace {

using engine::Gates;
using engine::Strips;

FF_INLINE bool any(const Gates& g) { return g.channel || g.line || g.column || g.pixel; }

template <bool Line, bool Column>
FF_NOINLINE void gate_rows(const Map& x, const Gates& g, const Map& y, Part part) {
  for (idx b = part.b0; b < part.b1; ++b) {
    const vecf channel = g.channel ? load(g.channel + b * L) : splat(1.f);
    for (idx i = part.y0; i < part.y1; ++i) {
      const vecf line = Line ? channel * load(g.line + (b * x.height + i) * L) : channel;
      const float *from = x.data + b * x.block + i * x.row, *column = Column ? g.column + b * x.width * L : nullptr;
      const float* pixel = g.pixel ? g.pixel + i * x.width : nullptr;
      float* to = y.data + b * y.block + i * y.row;
      for (idx j = 0; j < x.width; ++j) {
        vecf v = load(from + j * L) * line;
        if (Column) v = v * load(column + j * L);
        if (pixel) v = v * splat(pixel[j]);
        store(to + j * L, v);
      }
    }
  }
}

static void gate(const Map& x, const Gates& g, const Map& y, Part part) {
  if (g.line)
    g.column ? gate_rows<true, true>(x, g, y, part) : gate_rows<true, false>(x, g, y, part);
  else
    g.column ? gate_rows<false, true>(x, g, y, part) : gate_rows<false, false>(x, g, y, part);
}

// Rows of a map in scratch: the map's rows [first, first + rows), with `left` and `right` columns of border.
struct StripMap {
  float* at;
  idx rows, left, row, block, size;

  // The map, placed so that its row `first` is the strip's.
  FF_CLASS_INLINE Map map(const Map& shape, idx first) const {
    return {at + left * L - first * row, shape.channels, shape.height, shape.width, row, block};
  }
};

FF_INLINE StripMap strip_map(const Map& shape, idx rows, idx left, idx right) {
  const idx row = (left + shape.width + right) * L, block = rows * row;
  return {nullptr, rows, left, row, block, blocks_of(shape.channels) * block};
}

// What is between the convolutions: gated x (where expand or project reads it), what depthwise reads, what it writes.
struct StripPlan {
  StripMap gated, wide, deep;
  idx rows;  // of the output at once
};

FF_INLINE StripPlan strip_plan_of(const Strips& s, idx rows) {
  StripPlan p = {};
  p.rows = rows;
  const bool gates = any(s.gates);
  if (s.depthwise) {
    const Window& w = s.depthwise->window;
    const idx in_rows = (rows - 1) * w.sh + w.kh;
    const idx right = max_idx(0, (s.depthwise->y.width - 1) * w.sw - w.left + w.kw - s.depthwise->x.width);
    if (s.expand || gates) p.wide = strip_map(s.depthwise->x, in_rows, w.left, right);
    if (s.project) p.deep = strip_map(s.depthwise->y, rows, 0, 0);
    if (s.expand && gates) p.gated = strip_map(s.expand->x, in_rows, 0, 0);
  } else {
    p.gated = strip_map(s.project->x, rows, 0, 0);
  }
  return p;
}

FF_INLINE const Conv& last_of(const Strips& s) { return s.project ? *s.project : *s.depthwise; }

FF_INLINE StripPlan strip_plan(const Strips& s) {
  constexpr idx kFloats = 96 * 1024;
  idx rows = 1;
  for (; rows < last_of(s).y.height; ++rows) {
    const StripPlan next = strip_plan_of(s, rows + 1);
    if (next.gated.size + next.wide.size + next.deep.size > kFloats) break;
  }
  StripPlan p = strip_plan_of(s, rows);
  p.gated.at = s.scratch, p.wide.at = offset(s.scratch, p.gated.size), p.deep.at = offset(p.wide.at, p.wide.size);
  return p;
}

static size_t strips_scratch(const Strips& s) {
  const StripPlan p = strip_plan(s);
  return static_cast<size_t>(p.gated.size + p.wide.size + p.deep.size);
}

FF_NOINLINE void clear(float* p, idx n) {
  for (idx i = 0; i < n; i += L) store(p + i, vecf{});
}

FF_INLINE void clear_border(const StripMap& m, idx width, idx b0, idx b1) {
  for (idx line = b0 * m.rows; line < b1 * m.rows; ++line) {
    clear(m.at + line * m.row, m.left * L);
    clear(m.at + line * m.row + (m.left + width) * L, m.row - (m.left + width) * L);
  }
}

// Moves rows [from, from + rows) of each block to its first rows.
FF_INLINE void keep_rows(const StripMap& m, idx from, idx rows, idx b0, idx b1) {
  if (from == 0) return;
  for (idx b = b0; b < b1; ++b) {
    float* to = m.at + b * m.block;
    for (idx i = 0; i < rows * m.row; i += L) store(to + i, load(to + from * m.row + i));
  }
}

// Rows [first, end) of what depthwise reads, of blocks [b0, b1): zeros outside the image.
FF_INLINE void fill_wide(const Strips& s, const Map& input, const Map& wide, const StripMap& place, idx first, idx end, int b0, int b1) {
  const int y0 = static_cast<int>(max_idx(first, 0)), y1 = static_cast<int>(min_idx(end, wide.height));
  for (idx b = b0; b < b1; ++b)
    for (idx y = first; y < end; ++y)
      if (y < 0 || y >= wide.height) clear(wide.data + b * wide.block + y * wide.row - place.left * L, wide.row);
  if (y0 >= y1) return;
  if (!s.expand) return gate(input, s.gates, wide, {y0, y1, b0, b1});
  Conv expand = *s.expand;
  expand.x = input, expand.y = wide, expand.epilogue.pools = {};
  conv(expand, {y0, y1, b0, b1});
}

// Depthwise of output rows [part.y0, part.y1) behind what it reads; rows before `done` of that are there already, in a
// strip that began at row `before`.
FF_INLINE void wide_strip(const Strips& s, const StripPlan& p, Conv depthwise_conv, Part part, idx before, idx done) {
  const Window& w = depthwise_conv.window;
  const idx first = static_cast<idx>(part.y0) * w.sh - w.top, end = static_cast<idx>(part.y1 - 1) * w.sh - w.top + w.kh;
  const idx fresh = max_idx(first, done);
  const Map wide = p.wide.map(depthwise_conv.x, first);
  Map input = s.expand ? s.expand->x : depthwise_conv.x;
  if (s.expand && any(s.gates)) {
    const idx y0 = max_idx(fresh, 0), y1 = min_idx(end, input.height);
    const Map gated = p.gated.map(input, y0);
    if (y0 < y1) gate(input, s.gates, gated, {static_cast<int>(y0), static_cast<int>(y1), 0, static_cast<int>(blocks_of(input.channels))});
    input = gated;
  }
  const int panel = s.expand ? s.expand->panel : 1;
  depthwise_conv.x = wide;
  for (int b = part.b0; b < part.b1; b += panel) {
    const int b1 = static_cast<int>(min_idx(b + panel, part.b1));
    if (fresh > first) keep_rows(p.wide, first - before, fresh - first, b, b1);
    fill_wide(s, input, wide, p.wide, fresh, end, b, b1);
    depthwise(depthwise_conv, {part.y0, part.y1, b, b1});
  }
}

static void strips(const Strips& s, Part part) {
  const StripPlan p = strip_plan(s);
  const bool wide = s.depthwise && (s.expand || any(s.gates));
  Part deep = part;
  if (s.depthwise && s.project) deep.b0 = 0, deep.b1 = static_cast<int>(blocks_of(s.depthwise->y.channels));
  if (wide) clear_border(p.wide, s.depthwise->x.width, deep.b0, deep.b1);
  idx before = 0, done = -(1 << 30);
  for (int y0 = part.y0; y0 < part.y1; y0 += static_cast<int>(p.rows)) {
    const int y1 = static_cast<int>(min_idx(part.y1, y0 + p.rows));
    deep.y0 = y0, deep.y1 = y1;
    Map input = s.depthwise ? s.depthwise->y : s.project->x;
    if (s.depthwise) {
      const Window& w = s.depthwise->window;
      Conv middle = *s.depthwise;
      if (s.project) middle.y = input = p.deep.map(middle.y, y0), middle.epilogue.pools = {};
      if (wide)
        wide_strip(s, p, middle, deep, before, done);
      else
        depthwise(middle, deep);
      before = static_cast<idx>(y0) * w.sh - w.top, done = static_cast<idx>(y1 - 1) * w.sh - w.top + w.kh;
    } else if (any(s.gates)) {
      const Map gated = p.gated.map(input, y0);
      gate(input, s.gates, gated, {y0, y1, 0, static_cast<int>(blocks_of(input.channels))});
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
