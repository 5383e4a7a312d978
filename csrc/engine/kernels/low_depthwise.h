// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution of maps of any type, by the kernel of float32: what it reads becomes float32 a few rows of a
// channel block at a time, in cache, and what it wrote there becomes what is stored. A row is converted once where
// kernels that read the types themselves did it for each row of the window.
#pragma once
#include "engine/kernels/low_conv.h"

namespace ff {
namespace FF_ISA {
namespace {

// Rows of one block: the input's, and the output's where that is not float32.
constexpr idx kDeepFloats = 12288;  // 48 KiB

// Outputs computed at a time.
struct DeepTile {
  idx rows, columns;
};

FF_INLINE idx rows_read(const Window& w, idx rows) { return (rows - 1) * w.sh + span_height(w); }
FF_INLINE idx columns_read(const Window& w, idx columns) { return (columns - 1) * w.sw + span_width(w); }
FF_INLINE idx deep_floats(const Window& w, idx rows, idx columns) {
  return (rows_read(w, rows) * columns_read(w, columns) + rows * columns) * L;
}

// As much as fits; no rows: a window is larger than that.
FF_INLINE DeepTile deep_tile(const Window& w, idx rows, idx columns) {
  while (columns > 1 && deep_floats(w, 1, columns) > kDeepFloats) columns = ceil_div(columns, 2);
  if (deep_floats(w, 1, columns) > kDeepFloats) return {0, 0};
  idx most = 1;
  while (most < rows && deep_floats(w, most + 1, columns) <= kDeepFloats) ++most;
  return {most, columns};
}

FF_INLINE Map moved(Map m, Type type, idx block, idx y, idx x) {
  if (m.data) m.data = reinterpret_cast<float*>(place(m, type, block, y) + x * L * size_of(type));
  return m;
}

// Rows of one block as float32.
template <class X>
FF_NOINLINE void read_rows(const X* x, idx row, const Quant& quant, float* to, idx rows, idx columns) {
  for (idx i = 0; i < rows; ++i, x += row)
    for (idx j = 0; j < columns * L; j += L, to += L) store(to, load_as(x + j, quant));
}

// The residual and the activation after it, of rows of one block that go where `y` begins.
template <class T>
FF_NOINLINE void write_rows(const float* from, const Conv& c, const Map& y, const Map& residual, idx rows,
                            idx columns) {
  const Activation after = activation_of(c.epilogue.after);
  for (idx i = 0; i < rows; ++i) {
    T* to = reinterpret_cast<T*>(y.data) + i * y.row;
    const T* other = residual.data ? reinterpret_cast<const T*>(residual.data) + i * residual.row : nullptr;
    for (idx j = 0; j < columns * L; j += L, from += L) {
      vecf v = load(from);
      if (other) v = v + load_as(other + j, c.residual_quant), v = activated(v, after);
      store_as(to + j, v, c.y_quant);
    }
  }
}

// Any window, a pixel at a time.
FF_NOINLINE void deep_any(const Conv& c, Part part) {
  const Window& w = c.window;
  const Epilogue& e = c.epilogue;
  alignas(64) float out[L];
  for (idx b = part.b0; b < part.b1; ++b)
    for (idx y = part.y0; y < part.y1; ++y)
      for (idx x = 0; x < c.y.width; ++x) {
        vecf sum = load(e.bias + b * L);
        with_type(c.x_type, [&](auto tag) {
          using X = typename decltype(tag)::type;
          for (idx k = 0; k < w.kh; ++k)
            for (idx l = 0; l < w.kw; ++l) {
              const Map at = moved(c.x, c.x_type, b, y * w.sh - w.top + k * w.dh, x * w.sw - w.left + l * w.dw);
              sum = fma(load_as(reinterpret_cast<const X*>(at.data), c.x_quant),
                        load(c.weights + ((b * w.kh + k) * w.kw + l) * L), sum);
            }
        });
        store(out, sum);
        activate_row(e.act, out, 1);
        with_type(c.y_type, [&](auto tag) {
          using Y = typename decltype(tag)::type;
          if (e.residual.data) {
            const Map other = moved(e.residual, c.y_type, b, y, x);
            store(out, load(out) + load_as(reinterpret_cast<const Y*>(other.data), c.residual_quant));
            activate_row(e.after, out, 1);
          }
          store_as(reinterpret_cast<Y*>(moved(c.y, c.y_type, b, y, x).data), load(out), c.y_quant);
        });
      }
}

// One block of outputs [y, y + rows) × [x, x + columns).
FF_INLINE void deep_part(const Conv& c, idx b, idx y, idx x, idx rows, idx columns, float* room) {
  const Window& w = c.window;
  const bool plain = c.y_type == Type::float32;
  const idx in_rows = rows_read(w, rows), in_columns = columns_read(w, columns), row = in_columns * L;
  const Map in = moved(c.x, c.x_type, b, y * w.sh - w.top, x * w.sw - w.left), out = moved(c.y, c.y_type, b, y, x),
            other = moved(c.epilogue.residual, c.y_type, b, y, x);
  with_type(c.x_type, [&](auto tag) {
    using X = typename decltype(tag)::type;
    read_rows(reinterpret_cast<const X*>(in.data), c.x.row, c.x_quant, room, in_rows, in_columns);
  });
  float* written = room + in_rows * row;
  Conv call = c;
  call.window.top = call.window.left = 0;
  call.x = {room, static_cast<int>(L), static_cast<int>(in_rows), static_cast<int>(in_columns), row, in_rows * row};
  call.y = out, call.epilogue.residual = other;
  if (!plain) call.y.data = written, call.y.row = columns * L, call.epilogue.residual.data = nullptr;
  call.y.channels = static_cast<int>(L), call.y.height = static_cast<int>(rows),
  call.y.width = static_cast<int>(columns);
  call.weights += b * w.kh * w.kw * L, call.epilogue.bias += b * L, call.epilogue.pools = {};
  FF_FLOATS::engine_floats().depthwise(call, {0, call.y.height, 0, 1});
  if (c.y_type == Type::bfloat16) write_rows<bf16>(written, c, out, other, rows, columns);
  if (c.y_type == Type::uint8) write_rows<uint8_t>(written, c, out, other, rows, columns);
}

static void depthwise(const Conv& c, Part part) {
  if (c.x_type == Type::float32 && c.y_type == Type::float32) return FF_FLOATS::engine_floats().depthwise(c, part);
  FF_ASSERT(in_registers(c.epilogue) || c.y_type == Type::float32);
  alignas(64) float room[kDeepFloats];
  const DeepTile tile = deep_tile(c.window, part.y1 - part.y0, c.y.width);
  if (!tile.rows) deep_any(c, part);
  for (idx b = part.b0; tile.rows && b < part.b1; ++b)
    for (idx y = part.y0; y < part.y1; y += tile.rows)
      for (idx x = 0; x < c.y.width; x += tile.columns)
        deep_part(c, b, y, x, min_idx(tile.rows, part.y1 - y), min_idx(tile.columns, c.y.width - x), room);
  pool_part(c.epilogue.pools, c.y, c.y_type, c.y_quant, part, part.b0, part.b1);
}

}  // namespace
}  // namespace FF_ISA
}  // namespace ff
